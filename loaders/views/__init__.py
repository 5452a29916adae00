"""Views: augmentation policies as data, their random parameters, and the backends that apply them."""
