"""What every package uses and no mathematics: serialisation, files, text, padding."""
