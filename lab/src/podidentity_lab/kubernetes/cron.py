"""The schedules of CronJobs."""

import datetime as dt
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from podidentity_lab.kubernetes.statuses import ApiError


def check(schedule: str, zone: str) -> None:
    """Raise ApiError 422 for a schedule or a time zone that cannot be read."""
    try:
        CronSim(schedule, dt.datetime.now(ZoneInfo(zone)))
    except CronSimError as error:
        raise ApiError(422, f"spec.schedule: Invalid value: {schedule!r}: {error}") from None
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ApiError(422, f"spec.timeZone: Invalid value: {zone!r}: unknown time zone") from None


def latest(schedule: str, zone: str, since: dt.datetime, now: dt.datetime) -> dt.datetime | None:
    """Return the last time of a schedule after `since` and up to `now`; None when there is none."""
    last = None
    for moment in CronSim(schedule, since.astimezone(ZoneInfo(zone))):
        if moment > now:
            break
        last = moment
    return last
