"""What frozen networks compute once and keep on disk: image embeddings of a mask decoder, features of a teacher."""
