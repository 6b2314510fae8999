"""Tasks: labelled features, their validation, splits and subdivision."""
