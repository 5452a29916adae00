"""Views: augmentation policies as data, their random parameters, and the kernels that apply them."""
