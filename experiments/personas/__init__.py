"""The personality space: directions of traits in several models (`extract`), and how they lie together (`geometry`)."""
