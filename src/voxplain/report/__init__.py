"""Results as one self-contained page: pictures, a viewer, ranks, figures, and how far to believe them."""
