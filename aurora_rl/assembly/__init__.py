"""From a YAML file to objects: arguments, the model, the splits of a benchmark, the encoder, the teacher."""
