"""What comes in and goes out: pictures, config files, outputs, text that may be printed. No model is needed."""
