"""Pure tensor maths that plugins share."""
