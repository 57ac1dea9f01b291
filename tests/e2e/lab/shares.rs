//! Shares that the kernel's own NFS server serves, to the kernel's own client. Agent, server and clients are in the guest, the
//! clients in network name spaces.

use serde_json::Value;

use super::guest::Guest;

/// A network with three clients, a disk, and the agent's configuration.
const PREPARE: &str = r#"
for module in nfsd nfs nfsv4 veth bridge ipv6 loop xfs; do modprobe $module; done
ip link add bridge type bridge
ip addr add 10.77.0.1/24 dev bridge
ip link set bridge up
for client in 0 1 2; do
    ip netns add client$client
    ip link add port$client type veth peer name eth0 netns client$client
    ip link set port$client master bridge up
    ip -n client$client addr add 10.77.0.1$((client + 1))/24 dev eth0
    ip -n client$client link set eth0 up
    ip netns exec client$client sh -c "echo client$client > /sys/fs/nfs/net/nfs_client/identifier"
    mkdir -p /run/at/$client
done
mkfs.ext4 -q /dev/ubda
mkdir /run/disk
mount /dev/ubda /run/disk
cat > /run/quarry.toml <<'CONF'
[agent]
state_dir = "/run/disk/state"
[api]
listen = "unix:/run/quarry.sock"
[pool.default]
path = "/run/disk/default.pool"
create = true
size = "256MiB"
[target]
listen = ["127.0.0.1:3260"]
[share_pool.shares]
path = "/run/disk/shares.img"
create = true
size = "4GiB"
[share_server]
driver = "knfsd"
listen = "10.77.0.1"
CONF
"#;

/// Functions for the scripts of these tests.
const FUNCTIONS: &str = r#"
trap 'echo "failed: $BASH_COMMAND"' ERR
export QUARRY_ENDPOINT=unix:/run/quarry.sock LVM_SYSTEM_DIR=LVM DM_DISABLE_UDEV=1
quarry() { QUARRY "$@"; }
start_agent() {
    setsid QUARRY agent --config /run/quarry.toml > /run/agent.log 2>&1 &
    echo $! > /run/agent.pid
    for i in $(seq 600); do quarry node show > /dev/null 2>&1 && return; sleep 0.1; done
    cat /run/agent.log
    exit 1
}
as() { nsenter --net=/run/netns/client$1 "${@:2}"; }
attach() { as $1 mount -t nfs -o vers=4.2,softerr,timeo=20,retrans=1 "$2" /run/at/$1; }
fails() { if "$@" 2> /run/said; then echo "went well: $*"; exit 1; fi; }
"#;

struct Machine(Guest);

impl Machine {
    fn boot() -> Option<Self> {
        let machine = Self(Guest::boot()?);
        machine.0.run(PREPARE);
        Some(machine)
    }

    fn run(&self, script: &str) -> String {
        let functions = FUNCTIONS
            .replace("QUARRY ", concat!(env!("CARGO_BIN_EXE_quarry"), " "))
            .replace(
                "=LVM ",
                concat!("=", env!("CARGO_MANIFEST_DIR"), "/scripts/lab/lvm "),
            );
        self.0.run(&format!("{functions}{script}"))
    }

    fn json(&self, line: &str) -> Value {
        let said = self.run(&format!("quarry {line} -o json"));
        serde_json::from_str(&said).unwrap_or_else(|_| panic!("quarry {line}: {said}"))
    }
}

#[test]
fn the_kernels_server_serves_shares_by_their_rules_and_over_an_agents_death() {
    let Some(machine) = Machine::boot() else { return };
    machine.run("start_agent");
    let share = machine.json("share create --size 300MiB");
    let (id, at) = (
        share["id"].as_str().unwrap(),
        share["export_locations"][0]["path"].as_str().unwrap(),
    );
    assert_eq!(at, format!("10.77.0.1:/srv/quarry/share-{id}"));
    machine.run(&format!("fails attach 0 {at}"));
    machine.run(&format!(
        "quarry access set share:{id} --rule ro:10.77.0.0/24 --rule rw:10.77.0.11"
    ));
    machine.run(&format!(
        "attach 0 {at}
         attach 1 {at}
         echo written > /run/at/0/file
         grep -q written /run/at/1/file
         fails touch /run/at/1/other
         grep -q Read-only /run/said
         test $(($(stat -f -c '%b * %S' /run/at/0))) = $((300 << 20))"
    ));
    // The client holds a file open and writes on while the agent dies and another comes.
    machine.run(&format!(
        "exec 7>> /run/at/0/held
         echo before >&7
         kill -KILL $(cat /run/agent.pid)
         echo meanwhile >&7
         start_agent
         echo after >&7
         exec 7>&-
         test $(wc -l < /run/at/0/held) = 3
         quarry access explain share:{id} 10.77.0.12 | grep -q 10.77.0.0/24"
    ));
    // Out of reach at once, also where files are open; and back, with the same handles.
    machine.run(&format!(
        "exec 7>> /run/at/0/held
         quarry access set share:{id} --rule ro:10.77.0.13
         fails sh -c 'echo more >&7; sync /run/at/0/held'
         quarry access set share:{id} --rule rw:10.77.0.11
         echo more > /run/at/0/held2
         exec 7>&- || true
         fails cat /run/at/1/file"
    ));
    // What a client holds of a share does not keep it from being deleted.
    machine.run(&format!(
        "exec 7>> /run/at/0/held3
         echo held >&7
         quarry access set share:{id} > /run/said
         fails cat /run/at/0/file
         quarry share delete {id}
         test ! -e /srv/quarry/share-{id}
         exec 7>&- || true
         umount -f -l /run/at/0 /run/at/1"
    ));
    machine.run(
        r#"kill -TERM $(cat /run/agent.pid)
         while kill -0 $(cat /run/agent.pid) 2> /dev/null; do sleep 0.1; done
         grep -qx 0 /proc/fs/nfsd/threads
         fails pgrep rpc.mountd
         test ! -e /etc/exports.d/quarry.exports
         test -z "$(losetup --list --noheadings)""#,
    );
}

/// The same machine with a volume group, and a pool of shares in it.
const PREPARE_LVM: &str = r#"
for module in dm-mod dm-thin-pool; do modprobe $module; done
lvm pvcreate -q /dev/ubdb
lvm vgcreate -q group /dev/ubdb
sed -i '/share_pool/,/^size/d' /run/quarry.toml
cat >> /run/quarry.toml <<'CONF'
[share_pool.volumes]
driver = "lvm"
volume_group = "group"
thin_pool = "shares"
create = true
size = "2GiB"
CONF
"#;

#[test]
fn shares_on_logical_volumes_are_cloned_beside_their_parents_and_reverted_under_their_clients() {
    let Some(machine) = Machine::boot() else { return };
    machine.run(&format!("{PREPARE_LVM}start_agent"));
    let create = |options: &str| {
        let share = machine.json(&format!("share create {options}"));
        let (id, at) = (&share["id"], &share["export_locations"][0]["path"]);
        let [id, at] = [id, at].map(|one| one.as_str().unwrap().to_owned());
        machine.run(&format!("quarry access set share:{id} --rule rw:10.77.0.0/24"));
        (id, at)
    };
    let (parent, parent_at) = create("--size 256MiB");
    machine.run(&format!(
        "attach 0 {parent_at}
         echo first > /run/at/0/file
         mkdir /run/at/0/folder"
    ));
    let snapshot = machine.json(&format!("share-snapshot create --share {parent}"));
    let snapshot = snapshot["id"].as_str().unwrap();
    machine.run("echo second > /run/at/0/file");
    let (clone, clone_at) = create(&format!("--from snapshot:{snapshot}"));
    // Mounted beside each other by the server and by one client, each with an identity of its own.
    machine.run(&format!(
        "mkdir /run/clone
         as 0 mount -t nfs -o vers=4.2,softerr,timeo=20,retrans=1 {clone_at} /run/clone
         test $(cat /run/clone/file) = first
         test $(cat /run/at/0/file) = second
         echo of the clone > /run/clone/file
         test $(cat /run/at/0/file) = second
         test $(($(stat -f -c '%b * %S' /run/clone))) = $((256 << 20))
         test $(stat -c %d /run/clone) != $(stat -c %d /run/at/0)
         grep -o 'fsid=[^,)]*' /etc/exports.d/quarry.exports | sort -u > /run/fsids
         test $(wc -l < /run/fsids) = 2
         lvm lvs --noheadings -o lv_name group | grep -q quarry-share-{clone}"
    ));
    // Grown while it is written to, and the agent dies.
    machine.run(&format!(
        "exec 7>> /run/at/0/held
         echo before >&7
         quarry share resize {parent} --size 320MiB
         test $(($(stat -f -c '%b * %S' /run/at/0))) = $((320 << 20))
         kill -KILL $(cat /run/agent.pid)
         echo meanwhile >&7
         start_agent
         echo after >&7
         exec 7>&-
         test $(wc -l < /run/at/0/held) = 3"
    ));
    // Back to what it was, with the handles that the client has, and the size that it has now. The client looks again at what
    // it remembers of a file in its own time. The snapshot survives.
    machine.run(&format!(
        "quarry share revert {parent} --to-snapshot {snapshot}
         for i in $(seq 100); do test $(cat /run/at/0/file) = second || break; sleep 0.1; done
         test $(cat /run/at/0/file) = first
         test ! -e /run/at/0/held
         test -d /run/at/0/folder
         test $(($(stat -f -c '%b * %S' /run/at/0))) = $((320 << 20))
         quarry access set snapshot:{snapshot} --rule ro:10.77.0.11 > /run/said
         quarry share-snapshot show {snapshot} > /run/said
         umount -f -l /run/clone /run/at/0
         quarry share delete {clone}
         quarry share release {parent} --as kept
         lvm lvs --noheadings -o lv_name,lv_tags,lv_active group/kept > /run/said
         test \"$(xargs < /run/said)\" = kept
         quarry share adopt kept --id {parent}
         quarry access set share:{parent} --rule rw:10.77.0.11
         attach 0 {parent_at}
         test $(cat /run/at/0/file) = first
         umount -f -l /run/at/0
         quarry share delete {parent}
         quarry share-snapshot delete {snapshot}
         test -z \"$(lvm lvs --noheadings -o lv_name group | grep quarry)\""
    ));
    machine.run(
        "kill -TERM $(cat /run/agent.pid)
         while kill -0 $(cat /run/agent.pid) 2> /dev/null; do sleep 0.1; done
         test -z \"$(lvm lvs --noheadings -o lv_name -S 'lv_active=active && lv_name!=shares' group)\"",
    );
}
