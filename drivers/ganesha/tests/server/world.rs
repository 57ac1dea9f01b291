//! A machine with a network: the server at one address, three clients at others, in name spaces that end with the
//! test.

use std::cell::RefCell;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use quarry_contract::conformance::share_server::{IPV4_CLIENTS, IPV6_CLIENTS};
use quarry_contract::{
    AccessLevel, AccessRule, AccessRuleId, AccessTable, ClientKind, MountedShare, PortalRole, ShareAddress,
    ShareExport, ShareId, ShareServer, ShareVersion, Squash, resolve_access,
};
use quarry_ganesha::{GaneshaConfig, GaneshaServer, Programs};
use quarry_sys::filesystem::{MountMode, mount_device, mount_tmpfs};
use quarry_sys::loop_device::{LoopDevice, LoopMode};
use uuid::Uuid;

use crate::nfs::{Client, connect};

const INSIDE: &str = "QUARRY_TEST_INSIDE";
const FOLDER: &str = "QUARRY_TEST_FOLDER";
pub const PORT: u16 = 22049;
pub const SERVER_IPV4: &str = "10.77.0.1";
pub const SERVER_IPV6: &str = "fd77::1";

/// What every share holds.
pub const PROBE: &str = "probe";

/// Runs a test in name spaces of its own: network, mounts and processes, which all end with it. `name` is the test's.
pub fn isolated(name: &str, test: impl FnOnce()) {
    if std::env::var(INSIDE).is_ok_and(|inside| inside == name) {
        return test();
    }
    let has_all = ["/usr/bin/ganesha.nfsd", "/dev/loop-control"]
        .iter()
        .all(|one| Path::new(one).exists());
    if !nix::unistd::geteuid().is_root() || !has_all {
        eprintln!("SKIPPED {name}: needs root, loop devices and nfs-ganesha");
        return;
    }
    // Of this process, which removes it when nothing is mounted in it any more, however the test ends. On a disk, where loop
    // devices have direct I/O.
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let ended = Command::new("unshare")
        .args([
            "--net",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, name)
        .env(FOLDER, folder.path())
        .output()
        .unwrap();
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&ended.stdout),
        String::from_utf8_lossy(&ended.stderr)
    );
    assert!(ended.status.success(), "{said}");
    assert!(said.contains("1 passed"), "the test has not run: {said}");
}

pub struct World {
    folder: PathBuf,
    runtime: tokio::runtime::Runtime,
    shares: RefCell<u32>,
}

fn run(line: &str) {
    let mut words = line.split(' ');
    let program = words.next().unwrap();
    let ended = Command::new(program).args(words).output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{line}: {said}");
}

fn name_space(client: usize) -> String {
    format!("client{client}")
}

fn address(ip: &str) -> ShareAddress {
    ShareAddress {
        ip: ip.parse().unwrap(),
        role: PortalRole::Preferred,
    }
}

impl World {
    pub fn new() -> Self {
        // Names of network name spaces live there; the machine's own are not to be seen.
        mount_tmpfs(Path::new("/run"), 16 << 20).unwrap();
        run("ip link set lo up");
        run("ip link add bridge type bridge");
        run(&format!("ip addr add {SERVER_IPV4}/24 dev bridge"));
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
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        Self {
            folder: std::env::var_os(FOLDER).unwrap().into(),
            runtime,
            shares: RefCell::new(0),
        }
    }

    /// Lets futures of this thread use the runtime.
    pub fn enter(&self) -> tokio::runtime::EnterGuard<'_> {
        self.runtime.enter()
    }

    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    pub fn state_dir(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub fn config(&self, name: &str) -> GaneshaConfig {
        GaneshaConfig {
            state_dir: self.state_dir(name),
            listen: SocketAddr::new("::".parse().unwrap(), PORT),
            addresses: [SERVER_IPV4, SERVER_IPV6].map(address).into(),
            // The client here speaks the simplest one.
            minor_versions: vec![0, 1, 2],
            nfs3: None,
            grace_seconds: 5,
            programs: Programs::default(),
        }
    }

    pub fn start(&self, name: &str) -> GaneshaServer {
        self.block_on(GaneshaServer::start(self.config(name))).unwrap()
    }

    /// Returns the process of a server.
    pub fn ganesha(&self, name: &str) -> i32 {
        let path = self.state_dir(name).join("ganesha.pid");
        fs::read_to_string(path).unwrap().trim().parse().unwrap()
    }

    /// Kills the Ganesha of a server.
    pub fn kill(&self, name: &str) {
        kill(Pid::from_raw(self.ganesha(name)), Signal::SIGKILL).unwrap();
    }

    /// Mounts a file system of its own with a file in it.
    pub fn mount(&self) -> MountedShare {
        let number = *self.shares.borrow() + 1;
        *self.shares.borrow_mut() = number;
        let version = ShareVersion::Share(ShareId(Uuid::new_v4()));
        let image = self.folder.join(format!("image-{number}"));
        fs::File::create(&image).unwrap().set_len(320 << 20).unwrap();
        run(&format!("mkfs.xfs -q -K -s size=4096 {}", image.display()));
        let path = self.folder.join(format!("share-{number}"));
        fs::create_dir(&path).unwrap();
        let mounted = mount_image(version, &image, &path);
        fs::write(path.join(PROBE), format!("share number {number}")).unwrap();
        mounted
    }

    /// Mounts an image again.
    pub fn remount(&self, mounted: &MountedShare) -> MountedShare {
        let number = mounted
            .path
            .to_string_lossy()
            .rsplit('-')
            .next()
            .unwrap()
            .to_owned();
        let image = self.folder.join(format!("image-{number}"));
        mount_image(mounted.version, &image, &mounted.path)
    }

    /// Connects from a client's address to the server's of the same family.
    pub fn client(&self, address: &str) -> Client {
        let (name_space, server) = self.way(address, PORT);
        Client::connect(name_space, server)
    }

    /// Connects from a client's address to a port of the server's of the same family.
    pub fn connect(&self, address: &str, port: u16) -> io::Result<TcpStream> {
        let (name_space, server) = self.way(address, port);
        connect(name_space, server)
    }

    fn way(&self, address: &str, port: u16) -> (PathBuf, SocketAddr) {
        let address: IpAddr = address.parse().unwrap();
        let all = if address.is_ipv4() {
            IPV4_CLIENTS
        } else {
            IPV6_CLIENTS
        };
        let number = all
            .iter()
            .position(|one| one.parse::<IpAddr>().unwrap() == address)
            .unwrap();
        let server = if address.is_ipv4() {
            SERVER_IPV4
        } else {
            SERVER_IPV6
        };
        (
            Path::new("/run/netns").join(name_space(number)),
            SocketAddr::new(server.parse().unwrap(), port),
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
}

fn mount_image(version: ShareVersion, image: &Path, path: &Path) -> MountedShare {
    let device = LoopDevice::attach(image, LoopMode::ReadWrite).unwrap();
    mount_device(device.path(), path, "xfs", MountMode::ReadWrite, "").unwrap();
    MountedShare {
        version,
        path: path.to_owned(),
        device: fs::metadata(path).unwrap().dev(),
        filesystem: Uuid::nil(),
    }
}

pub fn table(rules: &[(&str, AccessLevel)]) -> AccessTable {
    let rule = |(client, level): &(&str, AccessLevel)| AccessRule {
        id: AccessRuleId(Uuid::new_v4()),
        kind: ClientKind::Ip,
        client: (*client).to_owned(),
        level: *level,
    };
    let rules: Vec<AccessRule> = rules.iter().map(rule).collect();
    let can = quarry_contract::EnforceableAccess {
        kinds: vec![ClientKind::Ip],
        ipv4: true,
        ipv6: true,
        refused_ipv6_prefixes: None,
    };
    resolve_access(&rules, &can).0
}

pub fn export(mounted: &MountedShare, rules: &[(&str, AccessLevel)]) -> ShareExport {
    ShareExport {
        mounted: mounted.clone(),
        access: table(rules),
        squash: Squash::None,
    }
}
