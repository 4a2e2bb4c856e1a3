"""Plain encoders and decoders. None of them knows what it is trained for."""
