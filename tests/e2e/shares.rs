//! Shares by the real binary: Ganesha, and libnfs's clients at addresses of their own, in name spaces that end with the
//! test.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use uuid::Uuid;

use crate::agent_process::{AgentProcess, eventually};
use crate::command::{id, json, quarry, refused};

const INSIDE: &str = "QUARRY_TEST_INSIDE";
const FOLDER: &str = "QUARRY_TEST_FOLDER";
const CLIENTS: [&str; 3] = ["10.77.0.11", "10.77.0.12", "10.77.0.13"];

/// Runs a test in name spaces of its own: network, mounts and processes.
fn isolated(name: &str, test: impl FnOnce()) {
    if std::env::var(INSIDE).is_ok_and(|inside| inside == name) {
        return test();
    }
    let has_programs = ["/usr/bin/ganesha.nfsd", "/usr/bin/nfs-cat", "/dev/loop-control"]
        .iter()
        .all(|one| Path::new(one).exists());
    if !nix::unistd::geteuid().is_root() || !has_programs {
        eprintln!("SKIPPED {name}: needs root, loop devices, nfs-ganesha and libnfs-utils");
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
    assert!(ended.status.success() && said.contains("1 passed"), "{said}");
}

fn run(line: &str) {
    let mut words = line.split(' ');
    let ended = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(
        ended.status.success(),
        "{line}: {}",
        String::from_utf8_lossy(&ended.stderr)
    );
}

/// A machine with three clients on its network, and an agent's folder.
struct Site {
    folder: PathBuf,
}

impl Site {
    fn new() -> Self {
        // Names of network name spaces live there; the machine's own are not to be seen.
        run("mount -t tmpfs tmpfs /run");
        for line in [
            "ip link set lo up",
            "ip link add bridge type bridge",
            "ip addr add 10.77.0.1/24 dev bridge",
            "ip link set bridge up",
        ] {
            run(line);
        }
        for (number, address) in CLIENTS.iter().enumerate() {
            run(&format!("ip netns add client{number}"));
            run(&format!(
                "ip link add port{number} type veth peer name eth0 netns client{number}"
            ));
            run(&format!("ip link set port{number} master bridge up"));
            run(&format!("ip -n client{number} addr add {address}/24 dev eth0"));
            run(&format!("ip -n client{number} link set eth0 up"));
        }
        let site = Self {
            folder: std::env::var_os(FOLDER).unwrap().into(),
        };
        let folder = site.folder.display();
        let config = format!(
            r#"[agent]
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
size = "4GiB"
[share_server]
listen = "[::]:22049"
addresses = ["10.77.0.1"]
versions = ["4.0", "4.1", "4.2"]
"#
        );
        std::fs::write(site.config(), config).unwrap();
        site
    }

    fn config(&self) -> PathBuf {
        self.folder.join("quarry.toml")
    }

    fn start(&self) -> AgentProcess {
        AgentProcess::start_configured(&self.config())
    }

    fn client(&self, number: usize, arguments: &[&str]) -> Output {
        Command::new("ip")
            .args(["netns", "exec", &format!("client{number}"), "timeout", "30"])
            .args(arguments)
            .output()
            .unwrap()
    }

    fn url(&self, location: &str, file: &str) -> String {
        let (address, path) = location.split_once(':').unwrap();
        format!("nfs://{address}{path}/{file}?version=4&nfsport=22049")
    }

    /// Reads a file as a client does.
    fn read(&self, number: usize, location: &str, file: &str) -> Option<String> {
        let ended = self.client(number, &["nfs-cat", &self.url(location, file)]);
        let text = String::from_utf8(ended.stdout).unwrap();
        ended
            .status
            .success()
            .then_some(text)
            .filter(|text| !text.is_empty())
    }

    /// Writes a new file as a client does.
    fn write(&self, number: usize, location: &str, file: &str, contents: &str) -> bool {
        let from = self.folder.join("to-write");
        std::fs::write(&from, contents).unwrap();
        let ended = self.client(
            number,
            &["nfs-cp", from.to_str().unwrap(), &self.url(location, file)],
        );
        let said = String::from_utf8_lossy(&ended.stdout).into_owned();
        said.contains(&format!("copied {} bytes", contents.len()))
    }
}

fn location(answer: &Value) -> String {
    answer["export_locations"][0]["path"].as_str().unwrap().to_owned()
}

fn create(agent: &AgentProcess, arguments: &str) -> (Uuid, String) {
    let share = json(agent, &format!("share create {arguments}"));
    (id(&share), location(&share))
}

fn set(agent: &AgentProcess, target: &str, rules: &str) -> Value {
    json(agent, &format!("access set {target} {rules}"))
}

#[test]
fn clients_get_what_the_rules_say_and_keep_it_over_everything() {
    isolated(
        "shares::clients_get_what_the_rules_say_and_keep_it_over_everything",
        || {
            let site = Site::new();
            let agent = site.start();
            let (share, at) = create(&agent, "--size 256MiB");
            let target = format!("share:{share}");
            assert_eq!(at, format!("10.77.0.1:/share-{share}"));
            assert_eq!(site.read(0, &at, "file"), None, "a share starts with no access");
            assert!(!site.write(0, &at, "file", "early"));

            // The matrix: rw, ro and nothing; then overlapping; then changed while they are there.
            set(&agent, &target, "--rule rw:10.77.0.11 --rule ro:10.77.0.12");
            assert!(site.write(0, &at, "file", "written by the first"));
            assert_eq!(site.read(1, &at, "file").unwrap(), "written by the first");
            assert!(!site.write(1, &at, "other", "not allowed"));
            assert_eq!(site.read(2, &at, "file"), None);
            set(
                &agent,
                &target,
                "--rule ro:10.77.0.0/24 --rule rw:10.77.0.13 --rule rw:host.example",
            );
            assert!(!site.write(0, &at, "second", "no longer"));
            assert_eq!(site.read(0, &at, "file").unwrap(), "written by the first");
            assert!(site.write(2, &at, "third", "the longest prefix"));
            let rules = json(&agent, &format!("access show {target}"));
            let states: Vec<&str> = rules
                .as_array()
                .unwrap()
                .iter()
                .map(|one| one["state"].as_str().unwrap())
                .collect();
            assert_eq!(states, ["active", "active", "refused"]);
            let decision = json(&agent, &format!("access explain {target} 10.77.0.12"));
            assert_eq!(
                (&decision["level"], &decision["loaded_level"]),
                (&"ro".into(), &"ro".into())
            );
            assert_eq!(decision["network"], "10.77.0.0/24");

            // A snapshot has rules of its own; a revert keeps the share's.
            let snapshot = json(&agent, &format!("share-snapshot create --share {share}"));
            let snapshot_at = location(&snapshot);
            let snapshot = id(&snapshot);
            assert!(site.write(2, &at, "later", "after the snapshot"));
            set(&agent, &format!("snapshot:{snapshot}"), "--rule rw:10.77.0.12");
            assert_eq!(
                site.read(1, &snapshot_at, "file").unwrap(),
                "written by the first"
            );
            assert_eq!(site.read(1, &snapshot_at, "later"), None);
            assert!(!site.write(1, &snapshot_at, "new", "a snapshot never changes"));
            assert_eq!(site.read(0, &snapshot_at, "file"), None);
            json(&agent, &format!("share revert {share} --to-snapshot {snapshot}"));
            assert_eq!(site.read(0, &at, "later"), None, "reverted");
            assert_eq!(site.read(0, &at, "file").unwrap(), "written by the first");

            // A larger clone is a share of its own.
            let (clone, clone_at) = create(&agent, &format!("--from snapshot:{snapshot} --size 320MiB"));
            assert_eq!(site.read(0, &clone_at, "file"), None);
            set(&agent, &format!("share:{clone}"), "--rule rw:10.77.0.11");
            assert_eq!(site.read(0, &clone_at, "file").unwrap(), "written by the first");
            assert!(site.write(0, &clone_at, "own", "of the clone"));
            assert_eq!(site.read(0, &at, "own"), None);
            json(&agent, &format!("share resize {clone} --size 512MiB"));
            assert_eq!(
                json(&agent, &format!("share show {clone}"))["size_bytes"],
                512 << 20
            );
            refused(&agent, &format!("share resize {clone} --size 256MiB"), 1);

            // The agent dies: clients do not notice, and the next agent has it all.
            agent.kill();
            assert_eq!(site.read(0, &at, "file").unwrap(), "written by the first");
            assert!(site.write(2, &at, "meanwhile", "without an agent"));
            let agent = site.start();
            assert_eq!(site.read(0, &at, "meanwhile").unwrap(), "without an agent");
            assert_eq!(
                site.read(1, &snapshot_at, "file").unwrap(),
                "written by the first"
            );
            assert!(!site.write(0, &at, "second", "still not"));
            assert_eq!(json(&agent, "node show")["health"]["state"], "ok");

            // Another program takes over: what serves shares goes on, and obeys it.
            let serving = || {
                Command::new("pgrep")
                    .args(["-f", "ganesha.nfsd"])
                    .output()
                    .unwrap()
                    .stdout
            };
            let before = serving();
            agent.succeed();
            assert!(!before.is_empty() && before == serving());
            assert_eq!(site.read(0, &at, "meanwhile").unwrap(), "without an agent");
            set(&agent, &target, "");
            assert_eq!(site.read(0, &at, "file"), None, "nobody");
            assert_eq!(site.read(2, &at, "file"), None, "nobody");
            set(&agent, &target, "--rule ro:0.0.0.0/0");
            assert_eq!(site.read(2, &at, "file").unwrap(), "written by the first");

            // A snapshot may take its share's rules: what changes them changes both. The server knows its clients.
            set(&agent, &format!("snapshot:{snapshot}"), "--inherit");
            assert_eq!(
                site.read(2, &snapshot_at, "file").unwrap(),
                "written by the first"
            );
            let known = json(&agent, &format!("access clients snapshot:{snapshot}"));
            let client = known
                .as_array()
                .unwrap()
                .iter()
                .find(|one| one["address"] == "10.77.0.13");
            assert_eq!(client.unwrap()["level"], "ro");
            set(&agent, &target, "--rule rw:10.77.0.11");
            assert_eq!(site.read(2, &snapshot_at, "file"), None, "as of the share");
            assert_eq!(
                site.read(0, &snapshot_at, "file").unwrap(),
                "written by the first"
            );
            assert!(!site.write(0, &snapshot_at, "new", "a snapshot never changes"));

            // A deleted share is gone for its clients, and what was made of it is not.
            json(&agent, &format!("share delete {share}"));
            assert_eq!(site.read(0, &at, "file"), None, "deleted");
            assert_eq!(
                site.read(0, &snapshot_at, "file"),
                None,
                "its rules were the share's"
            );
            assert_eq!(site.read(0, &clone_at, "own").unwrap(), "of the clone");
            assert_eq!(quarry(&agent, &format!("share show {share}")).code(), 3);

            // Given up, it is nobody's and whole; taken up again, it is another share.
            json(&agent, &format!("share release {clone} --as kept"));
            assert_eq!(site.read(0, &clone_at, "own"), None, "given up");
            refused(&agent, "share adopt nothing", 3);
            let adopted = json(&agent, "share adopt kept");
            assert_eq!(adopted["size_bytes"], 512 << 20);
            let (clone, clone_at) = (id(&adopted), location(&adopted));
            assert_eq!(site.read(0, &clone_at, "own"), None, "it begins with no access");
            set(&agent, &format!("share:{clone}"), "--rule rw:10.77.0.11");
            assert_eq!(site.read(0, &clone_at, "own").unwrap(), "of the clone");

            // A stop takes everything down, and a start brings it back.
            let (_, status) = agent.terminate();
            assert!(status.success());
            let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
            let folder = site.folder.to_str().unwrap();
            assert!(!mounts.contains(folder), "left mounted: {mounts}");
            let agent = site.start();
            eventually("the clone is served again", || site.read(0, &clone_at, "own"));
            assert_eq!(site.read(1, &clone_at, "own"), None);
            agent.terminate();
        },
    );
}

/// Returns where a share is mounted.
fn mounted_at(share: Uuid) -> Option<String> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let folder = format!("share-{share}");
    let found = mounts.split_whitespace().find(|word| word.ends_with(&folder));
    found.map(ToOwned::to_owned)
}

/// As when the device below it has failed a share, or its pool was full where nothing could be done about it.
#[test]
fn a_share_that_stops_is_served_again_by_itself() {
    isolated("shares::a_share_that_stops_is_served_again_by_itself", || {
        let site = Site::new();
        let agent = site.start();
        let (share, at) = create(&agent, "--size 256MiB");
        let (other, other_at) = create(&agent, "--size 256MiB");
        for share in [share, other] {
            set(&agent, &format!("share:{share}"), "--rule rw:10.77.0.11");
        }
        assert!(site.write(0, &at, "file", "flushed"));
        assert!(site.write(0, &other_at, "file", "of the other"));
        run(&format!("xfs_io -x -c shutdown {}", mounted_at(share).unwrap()));
        let listed = json(&agent, "share list").to_string();
        for share in [share, other] {
            assert!(
                listed.contains(&share.to_string()),
                "one that has stopped hides no other"
            );
        }
        assert_eq!(site.read(0, &at, "file"), None, "it has stopped");
        assert_eq!(site.read(0, &other_at, "file").unwrap(), "of the other");
        let read = eventually("it is served again", || site.read(0, &at, "file"));
        assert_eq!(read, "flushed");
        assert!(site.write(0, &at, "more", "it goes on"));
        assert_eq!(json(&agent, "node show")["health"]["state"], "ok");
        agent.terminate();
    });
}

#[test]
fn a_share_that_somebody_unmounts_or_replaces_is_served_again_and_nothing_else_is() {
    isolated(
        "shares::a_share_that_somebody_unmounts_or_replaces_is_served_again_and_nothing_else_is",
        || {
            let site = Site::new();
            let agent = site.start();
            let (share, at) = create(&agent, "--size 256MiB");
            let target = format!("share:{share}");
            set(&agent, &target, "--rule rw:10.77.0.11");
            assert!(site.write(0, &at, "file", "of the share"));
            let root = mounted_at(share).unwrap();
            // The server holds it, so that only a lazy one works.
            run(&format!("umount -l {root}"));
            eventually("it is mounted again", || mounted_at(share));
            let read = eventually("it is served again", || site.read(0, &at, "file"));
            assert_eq!(read, "of the share");

            // What is in the folder's place now is never served.
            let elsewhere = site.folder.join("elsewhere");
            std::fs::create_dir(&elsewhere).unwrap();
            std::fs::write(elsewhere.join("file"), "of this machine").unwrap();
            run(&format!("umount -l {root}"));
            std::fs::remove_dir(&root).unwrap();
            std::os::unix::fs::symlink(&elsewhere, &root).unwrap();
            eventually("it is known", || {
                let health = &json(&agent, "node show")["health"];
                (health["state"] == "degraded").then_some(())
            });
            assert_eq!(site.read(0, &at, "file"), None);
            refused(&agent, &format!("access set {target} --rule ro:10.77.0.0/24"), 4);
            assert_eq!(site.read(1, &at, "file"), None);
            std::fs::remove_file(&root).unwrap();
            let read = eventually("it is served again", || site.read(0, &at, "file"));
            assert_eq!(read, "of the share");
            assert_eq!(json(&agent, "node show")["health"]["state"], "ok");
            agent.terminate();
        },
    );
}
