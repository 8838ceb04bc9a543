"""The routes of a running server: those of its configuration, with changes from the management API."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torchmar.server.api_error import ApiError
from torchmar.server.config import routes as configured
from torchmar.server.config.routes import Route


class Routes:
    """The user's paths, and the model of each.

    Args:
        routes: routes of the configuration.

    Attributes:
        on_change: called after each change.
    """

    def __init__(self, routes: Mapping[str, Route]) -> None:
        self._routes = dict(routes)
        self.on_change: list[Callable[[], None]] = []

    @property
    def by_path(self) -> Mapping[str, Route]:
        """All routes."""
        return self._routes

    def find(self, path: str) -> Route | None:
        """Return the route of a path; None: there is none."""
        return self._routes.get(path)

    def get(self, path: str) -> Route:
        """Return the route of a path.

        Raises:
            ApiError: 404, the path has no route.
        """
        if (route := self._routes.get(path)) is None:
            raise ApiError(404, "ResourceNotFoundException", f"There is no route {path}")
        return route

    def set(self, path: str, route: Route) -> None:
        """Set the model of a path, which may have had another one.

        Raises:
            ApiError: 400, it is not a valid path, or it would hide a path of an API.
        """
        try:
            configured.check_path(path)
        except ValueError as error:
            raise ApiError(400, "BadRequestException", str(error)) from None
        self._routes[path] = route
        self._changed()

    def remove(self, path: str) -> None:
        """Remove a route.

        Raises:
            ApiError: 404, the path has no route.
        """
        self.get(path)
        del self._routes[path]
        self._changed()

    def _changed(self) -> None:
        for call in self.on_change:
            call()
