"""Assembly of objects from a YAML file: arguments, the model, the splits of a benchmark, the encoder, the teacher."""
