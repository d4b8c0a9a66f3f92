"""The clouds: a catalogue of data and three dialects."""
