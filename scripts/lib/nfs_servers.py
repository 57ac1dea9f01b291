"""NFS servers for the scripts beside this folder: an agent's, and Ganesha configured by hand."""

import json
import os
import socket
import subprocess
import time
from pathlib import Path

# Ganesha takes no address of a machine that has none but that of the loopback.
ADDRESS = "10.77.0.1"
# An agent with a thousand shares mounts them before it is ready.
START_DEADLINE = 600

# What somebody would write who knows Ganesha and not Quarry.
CONFIG_BY_HAND = """
NFS_CORE_PARAM {{ NFS_Port = {port}; Bind_addr = {address}; Protocols = 4; Enable_UDP = false; Enable_NLM = false;
  Enable_RQUOTA = false; Plugins_Dir = "{plugins}"; }}
NFSv4 {{ RecoveryBackend = fs_ng; RecoveryRoot = "{folder}/recovery"; Minor_Versions = 0, 1, 2; Only_Numeric_Owners = true;
  Lease_Lifetime = 10; Grace_Period = 10; }}
NFS_KRB5 {{ Active_krb5 = false; }}
"""
EXPORT_BY_HAND = """
EXPORT {{ Export_Id = {number}; Path = "{path}"; Pseudo = "/{name}"; Protocols = 4; Access_Type = RW; Squash = No_Root_Squash;
  SecType = sys; FSAL {{ Name = VFS; }} }}
"""


def run(*words, **options):
    return subprocess.run([str(word) for word in words], check=True, **options)


def make_network():
    """Gives the machine its address; in a network name space of its own."""
    for line in ["link set lo up", "link add bridge type bridge", f"addr add {ADDRESS}/24 dev bridge", "link set bridge up"]:
        run("ip", *line.split())


def wait_for(what, holds, process):
    deadline = time.monotonic() + START_DEADLINE
    while not holds():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{what} does not start")
        time.sleep(0.02)


def accepts(port):
    with socket.socket() as tried:
        return tried.connect_ex((ADDRESS, port)) == 0


class Agent:
    """An agent with a pool of shares and an NFS server."""

    def __init__(self, quarry, folder, port, pool_size):
        self.quarry, self.folder = quarry, folder
        (folder / "quarry.toml").write_text(
            f"""[agent]
state_dir = "{folder}/state"
[api]
listen = "unix:{folder}/quarry.sock"
[pool.default]
path = "{folder}/default.pool"
create = true
size = "256MiB"
[target]
listen = ["127.0.0.1:3260"]
[share_pool.shares]
path = "{folder}/shares.img"
create = true
size = "{pool_size}"
[share_server]
listen = "{ADDRESS}:{port}"
versions = ["4.0", "4.1", "4.2"]
"""
        )
        self.start()

    def start(self):
        ready = self.folder / "ready"
        command = [self.quarry, "agent", "--config", self.folder / "quarry.toml"]
        with ready.open("w") as out, (self.folder / "agent.log").open("a") as log:
            self.process = subprocess.Popen(command, stdout=out, stderr=log)
        wait_for("the agent", lambda: "ready" in ready.read_text(), self.process)

    def call(self, *words):
        command = [self.quarry, "--endpoint", f"unix:{self.folder}/quarry.sock", "-o", "json", *words]
        return json.loads(run(*command, stdout=subprocess.PIPE).stdout)

    def share(self, size):
        """Makes a share that this machine may write to, and returns its id and its path."""
        share = self.call("share", "create", "--size", size)
        self.call("access", "set", f"share:{share['id']}", "--rule", f"rw:{ADDRESS}")
        return share["id"], share["export_locations"][0]["path"].split(":", 1)[1]


def start_by_hand(folder, port, count):
    """Starts Ganesha with a file of its own; returns its process, and the paths of this many exports."""
    plugins = next(Path("/usr").glob("lib*/**/ganesha/libfsalvfs.so")).parent
    (folder / "recovery").mkdir(parents=True)
    text = CONFIG_BY_HAND.format(address=ADDRESS, port=port, plugins=plugins, folder=folder)
    paths = []
    for number in range(1, count + 1):
        name = f"hand{number}"
        image, mount = folder / f"{name}.img", folder / name
        run("truncate", "--size=2G", image)
        run("mkfs.xfs", "-q", image)
        mount.mkdir()
        run("mount", "-o", "loop", image, mount)
        text += EXPORT_BY_HAND.format(number=number, path=mount, name=name)
        paths.append(f"/{name}")
    config = folder / "ganesha.conf"
    config.write_text(text)
    bus = folder / "bus.sock"
    (folder / "bus.conf").write_text(
        f"<busconfig><type>system</type><listen>unix:path={bus}</listen><auth>EXTERNAL</auth>"
        '<policy context="default"><allow user="root"/><allow own="*"/><allow send_destination="*"/>'
        '<allow receive_type="method_call"/></policy></busconfig>'
    )
    output = (folder / "out").open("w")
    daemon = ["dbus-daemon", f"--config-file={folder}/bus.conf", "--nofork", "--nopidfile"]
    wait_for("the bus", bus.exists, subprocess.Popen(daemon, stdout=output, stderr=output))
    process = subprocess.Popen(
        ["ganesha.nfsd", "-F", "-f", config, "-p", folder / "pid", "-L", folder / "log", "-N", "NIV_EVENT"],
        stdout=output, stderr=output, env={**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={bus}"},
    )
    wait_for("Ganesha by hand", lambda: accepts(port), process)
    return process, paths
