"""A Django project with one page, which forwards its requests to the clinic model."""
