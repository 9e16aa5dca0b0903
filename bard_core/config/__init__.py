"""Every knob: sections, and a whole file of them."""
