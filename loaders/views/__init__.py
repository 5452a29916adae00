"""Views: augmentation policies as data, their random parameters, and their form as DALI graphs."""
