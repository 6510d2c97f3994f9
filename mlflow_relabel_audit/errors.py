"""Errors that say what is wrong, what was got, and what to do.

Every error a user can meet derives from `RelabelAuditError`. Its ``exit_code`` is what the command line
returns: 1 a gate that failed, 2 a request or its data that is wrong, 3 a server, store or scheduler that failed.
"""

from __future__ import annotations


class RelabelAuditError(Exception):
    """Base of the package's errors; ``exit_code`` is the command line's exit status."""

    exit_code = 2


class RequestError(RelabelAuditError, ValueError):
    """The request, or the data it names, is wrong."""


class UnsupportedModelError(RequestError):
    """The estimator is one whose training objective this audit does not cover."""


class DataMismatchError(RequestError):
    """The rows are not the rows the model was trained on."""


class SingularHessianError(RequestError):
    """The curvature of the training objective cannot be inverted."""


class StaleCurvatureError(RelabelAuditError):
    """A stored Hessian is corrupted, or belongs to another model or other data; factor it again."""


class StoreError(RelabelAuditError):
    """A server, an artifact store, a file system or a scheduler failed."""

    exit_code = 3


class GateFailedError(RelabelAuditError):
    """A promotion gate's requirement was not met."""

    exit_code = 1
