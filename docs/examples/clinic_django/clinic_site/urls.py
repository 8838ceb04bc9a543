"""The paths of the site."""

from django.urls import path

from clinic_site import views

urlpatterns = [path("assess/", views.assess)]
