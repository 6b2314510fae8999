"""Choose among encoders by racing them on growing parts of the data."""
