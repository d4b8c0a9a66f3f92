"""The clouds: a catalogue of data and two dialects."""
