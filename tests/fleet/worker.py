"""A worker with pybreaker: each input line sets the result of a call, and the output says whether it was made."""

import sys

import pybreaker
import redis

url, namespace, reset_timeout = sys.argv[1:4]
cluster = "," in url
if cluster:
    client = redis.RedisCluster.from_url(url.split(",")[0])
else:
    client = redis.Redis.from_url(url)
storage = pybreaker.CircuitRedisStorage(
    pybreaker.STATE_CLOSED, client, namespace=namespace, cluster_mode=cluster
)
breaker = pybreaker.CircuitBreaker(fail_max=5, reset_timeout=int(reset_timeout), state_storage=storage)

for word in map(str.strip, sys.stdin):
    calls = []

    def call():
        calls.append(word)
        if word != "works":
            raise ConnectionError(word)

    try:
        breaker.call(call)
    except (pybreaker.CircuitBreakerError, ConnectionError):
        pass
    print("called" if calls else "refused", flush=True)
