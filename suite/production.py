"""
Whether stores of production's versions answer: `python -m suite.production POSTGRES_URL REDIS_URL`.

Prints one sentence and exits with 3 if they do not; .ci/run asks. Any other code but 0 is a crash.
"""

import sys

import redis

from suite import readiness
from suite.errors import SuiteError

POSTGRES, REDIS = "15", "7"
NOT_THERE = 3


def main() -> None:
    database_url, redis_url = sys.argv[1:]
    try:
        found = readiness.require_database(database_url).partition(".")[0]
        readiness.require_redis(redis_url)
    except SuiteError as error:
        sys.exit(_say(str(error)))
    if found != POSTGRES:
        sys.exit(_say(f"PostgreSQL {found} answers instead of {POSTGRES}."))
    with redis.Redis.from_url(redis_url) as client:
        version = str(client.info("server")["redis_version"]).partition(".")[0]
    if version != REDIS:
        sys.exit(_say(f"Redis {version} answers instead of {REDIS}."))


def _say(sentence: str) -> int:
    print(sentence)
    return NOT_THERE


if __name__ == "__main__":
    main()
