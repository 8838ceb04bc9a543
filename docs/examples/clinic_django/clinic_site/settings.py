"""Settings, from the environment of the process."""

import os
import secrets

# The path of the model; with a route (torchmar_routes) it is the one of your choice.
CLINIC_URL = os.environ.get("CLINIC_URL", "http://127.0.0.1:5000/inference")
CLINIC_TOKEN = os.environ.get("CLINIC_TOKEN", "")  # of the inference API
CLINIC_CONNECT_TIMEOUT = float(os.environ.get("CLINIC_CONNECT_TIMEOUT", "1"))  # seconds
CLINIC_TIMEOUT = float(os.environ.get("CLINIC_TIMEOUT", "5"))  # seconds without a byte of the answer

SECRET_KEY = os.environ.get("DJANGO_SECRET_KEY") or secrets.token_urlsafe(50)
ALLOWED_HOSTS = os.environ.get("DJANGO_ALLOWED_HOSTS", "127.0.0.1,localhost").split(",")
MIDDLEWARE = ["django.middleware.security.SecurityMiddleware", "django.middleware.common.CommonMiddleware"]
ROOT_URLCONF = "clinic_site.urls"
WSGI_APPLICATION = "clinic_site.wsgi.application"
DATA_UPLOAD_MAX_MEMORY_SIZE = 2**20  # bytes
USE_TZ = True
