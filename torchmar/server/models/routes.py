"""The routes of a running server: from its configuration, and changed by the management API."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torchmar.server.api_error import ApiError
from torchmar.server.config import routes as configured
from torchmar.server.config.routes import Route


class Routes:
    """Paths of the user's choice and the models that they lead to.

    Args:
        routes: those of the configuration.

    Attributes:
        on_change: called after every change.
    """

    def __init__(self, routes: Mapping[str, Route]) -> None:
        self._routes = dict(routes)
        self.on_change: list[Callable[[], None]] = []

    @property
    def by_path(self) -> Mapping[str, Route]:
        """All routes."""
        return self._routes

    def find(self, path: str) -> Route | None:
        """Return the route of a path; None: it has none."""
        return self._routes.get(path)

    def get(self, path: str) -> Route:
        """Return the route of a path.

        Raises:
            ApiError: 404, it has none.
        """
        if (route := self._routes.get(path)) is None:
            raise ApiError(404, "ResourceNotFoundException", f"There is no route {path}")
        return route

    def set(self, path: str, route: Route) -> None:
        """Make a path lead to a model; it may lead to another now.

        Raises:
            ApiError: 400, it is not a path, or it would hide a path of an API.
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
            ApiError: 404, there is none.
        """
        self.get(path)
        del self._routes[path]
        self._changed()

    def _changed(self) -> None:
        for call in self.on_change:
            call()
