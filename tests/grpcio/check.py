"""A stranger's client: Python's grpcio over the Unix socket, with no file of syncd's.

    check.py SYNCD        (the daemon's program)

Starts a daemon, learns its messages from gRPC reflection, asks its health, takes a lock in one
session, waits for it in another, and sees it handed over: in order, and after a death. Needs the
packages grpcio and grpcio-reflection (`.ci/run` installs them). Exits with 0 if all of it held.
"""

import os
import queue
import subprocess
import sys
import tempfile
import time

import grpc
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

PATIENCE = 60  # seconds; only against a hang


class Session:
    """One stream of Broker.Session; replies are read one by one."""

    def __init__(self, channel, pool):
        def message(name):
            found = pool.FindMessageTypeByName(f"syncd.v1.{name}")
            return message_factory.GetMessageClass(found)

        self.Client, server = message("ClientMessage"), message("ServerMessage")
        self.requests, self.last_id = queue.SimpleQueue(), 0
        call = channel.stream_stream(
            "/syncd.v1.Broker/Session",
            request_serializer=self.Client.SerializeToString,
            response_deserializer=server.FromString,
        )
        self.replies = call(iter(self.requests.get, None), timeout=PATIENCE)
        assert self.call(open={"protocol": 1}).WhichOneof("message") == "opened"

    def send(self, **request):
        self.last_id += 1
        self.requests.put(self.Client(id=self.last_id, **request))
        return self.last_id

    def receive(self):
        return next(self.replies)

    def call(self, **request):
        self.send(**request)
        return self.receive()


def wait_for(socket):
    end = time.monotonic() + PATIENCE
    while not os.path.exists(socket):
        assert time.monotonic() < end, "the daemon doesn't listen"
        time.sleep(0.01)


def check(socket):
    # The name of the authority is nobody's: without it, gRPC would send the socket's path.
    options = [("grpc.default_authority", "localhost")]
    with (
        grpc.insecure_channel(f"unix:{socket}", options) as one,
        grpc.insecure_channel(f"unix:{socket}", options) as other,
    ):
        reflection = ProtoReflectionDescriptorDatabase(one)
        services = set(reflection.get_services())
        assert {"syncd.v1.Broker", "syncd.v1.Inspect", "grpc.health.v1.Health"} <= services, services
        pool = descriptor_pool.DescriptorPool(reflection)

        health = pool.FindServiceByName("grpc.health.v1.Health").FindMethodByName("Check")
        response = message_factory.GetMessageClass(health.output_type)
        status = one.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=lambda request: request,
            response_deserializer=response.FromString,
        )(b"", timeout=PATIENCE)
        assert status.status == 1, status  # SERVING

        first, second = Session(one, pool), Session(other, pool)
        create = {"name": "stranger", "sem_lock": {"class": 1}}
        mine = first.call(create=create).attached
        theirs = second.call(create=create).attached
        assert mine.created and not theirs.created and mine.key == theirs.key

        held = first.call(acquire={"handle": mine.handle, "owner": 1}).granted
        refused = second.call(acquire={"handle": theirs.handle, "owner": 1, "timeout_us": 0}).error
        assert refused.holders[0].process.pid == os.getpid(), refused
        waiting = second.send(acquire={"handle": theirs.handle, "owner": 1})
        release = {"handle": mine.handle, "owner": 1, "token": held.token}
        assert first.call(release=release).WhichOneof("message") == "done"
        granted = second.receive()
        assert granted.id == waiting and granted.granted.token > held.token, granted

        # Who leaves with a lock in hand is told of to the next.
        waiting = first.send(acquire={"handle": mine.handle, "owner": 1})
        assert second.call(goodbye={}).WhichOneof("message") == "done"
        granted = first.receive()
        assert granted.id == waiting and granted.granted.abandoned.cause == 3, granted  # LEFT


def main():
    with tempfile.TemporaryDirectory() as directory:
        socket = os.path.join(directory, "s")
        daemon = subprocess.Popen([sys.argv[1], "--socket", socket])
        try:
            wait_for(socket)
            check(socket)
        finally:
            daemon.terminate()
            assert daemon.wait(PATIENCE) == 0, "the daemon did not leave in order"
    print("a stranger's gRPC client took and released a lock")


if __name__ == "__main__":
    main()
