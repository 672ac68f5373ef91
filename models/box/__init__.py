"""The model in the box: trained weights of the small V-Express, its bundle, and clips that it has never met."""
