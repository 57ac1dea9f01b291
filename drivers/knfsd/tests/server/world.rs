//! A machine with a network: the server at one address, three clients at others. The machine is a lab guest, which ends with
//! the tests.

use std::cell::Cell;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use quarry_contract::conformance::share_server::{IPV4_CLIENTS, IPV6_CLIENTS};
use quarry_contract::{
    AccessLevel, AccessRule, AccessRuleId, ClientKind, EnforceableAccess, MountedShare, PortalRole,
    ShareAddress, ShareExport, ShareId, ShareServer, ShareVersion, Squash, resolve_access,
};
use quarry_knfsd::{KnfsdConfig, KnfsdServer};
use quarry_sys::filesystem::{MountMode, mount_device};
use quarry_sys::loop_device::{LoopDevice, LoopMode};
use uuid::Uuid;

use crate::nfs::Client;

const PORT: u16 = 2049;
pub const SERVER: &str = "10.77.0.1";
const SERVER_IPV6: &str = "fd77::1";

/// What every share holds.
pub const PROBE: &str = "probe";

/// Where the disk of the guest is mounted.
const DISK: &str = "/run/disk";

static NETWORK: Once = Once::new();

pub struct World {
    folder: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    shares: Cell<u32>,
}

pub fn run(line: &str) {
    let mut words = line.split(' ');
    let program = words.next().unwrap();
    let ended = Command::new(program).args(words).output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{line}: {said}");
}

fn name_space(client: usize) -> String {
    format!("client{client}")
}

/// Waits for something that takes a moment.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn make_network() {
    for module in ["nfsd", "nfs", "nfsv4", "veth", "bridge", "ipv6", "loop", "xfs"] {
        run(&format!("modprobe {module}"));
    }
    run("ip link add bridge type bridge");
    run(&format!("ip addr add {SERVER}/24 dev bridge"));
    run(&format!("ip -6 addr add {SERVER_IPV6}/64 dev bridge nodad"));
    run("ip link set bridge up");
    for (client, (ipv4, ipv6)) in IPV4_CLIENTS.iter().zip(IPV6_CLIENTS).enumerate() {
        let space = name_space(client);
        run(&format!("ip netns add {space}"));
        run(&format!(
            "ip link add port{client} type veth peer name eth0 netns {space}"
        ));
        run(&format!("ip link set port{client} master bridge up"));
        run(&format!("ip -n {space} addr add {ipv4}/24 dev eth0"));
        run(&format!("ip -n {space} -6 addr add {ipv6}/64 dev eth0 nodad"));
        run(&format!("ip -n {space} link set eth0 up"));
        // Without one of its own each client takes the others' state for its own.
        let identify = format!("echo {space} > /sys/fs/nfs/net/nfs_client/identifier");
        let ended = Command::new("ip")
            .args(["netns", "exec", &space, "sh", "-c", &identify])
            .status();
        assert!(ended.unwrap().success());
    }
    run("mkfs.ext4 -q /dev/ubda");
    fs::create_dir_all(DISK).unwrap();
    run(&format!("mount /dev/ubda {DISK}"));
}

fn address(ip: &str) -> ShareAddress {
    ShareAddress {
        ip: ip.parse().unwrap(),
        role: PortalRole::Preferred,
    }
}

impl World {
    /// `None` elsewhere than in a lab guest.
    pub fn new() -> Option<Self> {
        if std::env::var_os("QUARRY_LAB_GUEST").is_none() {
            eprintln!("SKIPPED: takes the whole machine; scripts/lab/test runs it in a guest");
            return None;
        }
        NETWORK.call_once(make_network);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        Some(Self {
            folder: tempfile::tempdir_in(DISK).unwrap(),
            runtime,
            shares: Cell::new(0),
        })
    }

    /// Lets futures of this thread use the runtime.
    pub fn enter(&self) -> tokio::runtime::EnterGuard<'_> {
        self.runtime.enter()
    }

    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    pub fn config(&self, name: &str) -> KnfsdConfig {
        let listen = SocketAddr::new("::".parse().unwrap(), PORT);
        KnfsdConfig {
            addresses: [SERVER, SERVER_IPV6].map(address).into(),
            // The client of these tests speaks the simplest one.
            minor_versions: vec![0, 1, 2],
            threads: 4,
            ..KnfsdConfig::new(self.folder.path().join(name), listen)
        }
    }

    pub fn start(&self, name: &str) -> KnfsdServer {
        self.block_on(KnfsdServer::start(self.config(name))).unwrap()
    }

    /// Ends all of a server that can be ended.
    pub fn kill(&self, name: &str) {
        fs::write("/proc/fs/nfsd/threads", "0\n").unwrap();
        for process in ["mountd", "nfsdcld"] {
            let path = self.folder.path().join(name).join(format!("{process}.process"));
            let remembered = fs::read_to_string(path).unwrap();
            let (pid, _) = remembered.split_once(' ').unwrap();
            kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGKILL).unwrap();
        }
    }

    /// Mounts a file system of its own with a file in it.
    pub fn mount(&self) -> MountedShare {
        let number = self.shares.get() + 1;
        self.shares.set(number);
        let image = self.folder.path().join(format!("image-{number}"));
        fs::File::create(&image).unwrap().set_len(320 << 20).unwrap();
        run(&format!("mkfs.xfs -q -K -s size=4096 {}", image.display()));
        let path = self.folder.path().join(format!("share-{number}"));
        fs::create_dir(&path).unwrap();
        let device = LoopDevice::attach(&image, LoopMode::ReadWrite).unwrap();
        mount_device(device.path(), &path, "xfs", MountMode::ReadWrite, "").unwrap();
        fs::write(path.join(PROBE), format!("share number {number}")).unwrap();
        MountedShare {
            version: ShareVersion::Share(ShareId(Uuid::new_v4())),
            device: fs::metadata(&path).unwrap().dev(),
            path,
            filesystem: Uuid::nil(),
        }
    }

    /// Connects from a client's address to the server's of the same family.
    pub fn client(&self, address: &str) -> Client {
        let address: IpAddr = address.parse().unwrap();
        let (all, server) = match address.is_ipv4() {
            true => (IPV4_CLIENTS, SERVER),
            false => (IPV6_CLIENTS, SERVER_IPV6),
        };
        let number = all
            .iter()
            .position(|one| one.parse::<IpAddr>().unwrap() == address)
            .unwrap();
        Client::connect(
            Path::new("/run/netns").join(name_space(number)),
            SocketAddr::new(server.parse().unwrap(), PORT),
        )
    }

    /// Returns what a client can do with an export.
    pub fn attempt(
        &self,
        server: &dyn ShareServer,
        version: ShareVersion,
        address: &str,
    ) -> Option<AccessLevel> {
        self.client(address).attempt(&server.path_of(version), PROBE)
    }

    /// Mounts an export with the kernel's client, as the client of this number.
    pub fn mount_as(&self, client: usize, server: &dyn ShareServer, version: ShareVersion) -> PathBuf {
        let at = self
            .folder
            .path()
            .join(format!("client-{client}-{version}").replace(' ', "-"));
        fs::create_dir_all(&at).unwrap();
        run(&format!(
            "nsenter --net=/run/netns/{} mount -t nfs -o vers=4.1,softerr,timeo=20,retrans=1 {SERVER}:{} {}",
            name_space(client),
            server.path_of(version),
            at.display()
        ));
        at
    }
}

pub fn export(mounted: &MountedShare, rules: &[(&str, AccessLevel)]) -> ShareExport {
    let rule = |(client, level): &(&str, AccessLevel)| AccessRule {
        id: AccessRuleId(Uuid::new_v4()),
        kind: ClientKind::Ip,
        client: (*client).to_owned(),
        level: *level,
    };
    let rules: Vec<AccessRule> = rules.iter().map(rule).collect();
    let can = EnforceableAccess {
        kinds: vec![ClientKind::Ip],
        ipv4: true,
        ipv6: true,
        refused_ipv6_prefixes: None,
    };
    ShareExport {
        mounted: mounted.clone(),
        access: resolve_access(&rules, &can).0,
        squash: Squash::None,
    }
}
