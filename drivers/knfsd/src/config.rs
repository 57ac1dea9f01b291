//! How the server is run.

use std::net::SocketAddr;
use std::path::PathBuf;

use quarry_contract::ShareAddress;

/// How the server is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnfsdConfig {
    /// A folder of its own: which processes are its, which clients may reclaim, logs.
    pub state_dir: PathBuf,
    /// The folder below which clients find their shares: `ROOT/share-ID` is what they mount. It and all above it are on
    /// file systems that the kernel can export.
    pub root: PathBuf,
    /// Its table of exports, which `exportfs` reads beside the machine's own.
    pub table: PathBuf,
    /// Where it listens; `[::]` is every address of both families.
    pub listen: SocketAddr,
    /// The addresses that clients are told. Needed when it listens on every address.
    pub addresses: Vec<ShareAddress>,
    /// The minor versions of NFSv4 it speaks.
    pub minor_versions: Vec<u8>,
    /// How long clients have to come back after a restart before others may take their locks, in seconds; the kernel takes
    /// 10 and more.
    pub grace_seconds: u32,
    /// How many threads the kernel serves with.
    pub threads: u16,
    /// The programs.
    pub programs: Programs,
}

/// The programs that are run, all of Debian's nfs-kernel-server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    /// `exportfs`.
    pub exportfs: PathBuf,
    /// `rpc.mountd`.
    pub mountd: PathBuf,
    /// `rpc.nfsd`.
    pub nfsd: PathBuf,
    /// `nfsdcld`.
    pub nfsdcld: PathBuf,
}

impl Default for Programs {
    fn default() -> Self {
        Self {
            exportfs: "/usr/sbin/exportfs".into(),
            mountd: "/usr/sbin/rpc.mountd".into(),
            nfsd: "/usr/sbin/rpc.nfsd".into(),
            nfsdcld: "/usr/sbin/nfsdcld".into(),
        }
    }
}

impl KnfsdConfig {
    /// Returns the defaults: shares below `/srv/quarry`, NFSv4.1 and 4.2, ten seconds of grace, 16 threads.
    pub fn new(state_dir: PathBuf, listen: SocketAddr) -> Self {
        Self {
            state_dir,
            root: "/srv/quarry".into(),
            table: "/etc/exports.d/quarry.exports".into(),
            listen,
            addresses: Vec::new(),
            minor_versions: vec![1, 2],
            grace_seconds: 10,
            threads: 16,
            programs: Programs::default(),
        }
    }

    /// Returns what `rpc.nfsd` is told.
    pub(crate) fn nfsd_arguments(&self) -> Vec<String> {
        let mut arguments = vec!["--no-udp".to_owned(), "-N".to_owned(), "3".to_owned()];
        for minor in 0..=2 {
            let is_spoken = self.minor_versions.contains(&minor);
            arguments.push(if is_spoken { "-V" } else { "-N" }.to_owned());
            arguments.push(format!("4.{minor}"));
        }
        if !self.listen.ip().is_unspecified() {
            arguments.push("--host".to_owned());
            arguments.push(self.listen.ip().to_string());
        }
        arguments.push("--port".to_owned());
        arguments.push(self.listen.port().to_string());
        arguments.push(self.threads.to_string());
        arguments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_is_told_each_minor_version_and_where_to_listen() {
        let config = |listen: &str| KnfsdConfig::new("/state".into(), listen.parse().unwrap());
        assert_eq!(
            config("[::]:2049").nfsd_arguments().join(" "),
            "--no-udp -N 3 -N 4.0 -V 4.1 -V 4.2 --port 2049 16"
        );
        let one = KnfsdConfig {
            minor_versions: vec![0],
            threads: 1,
            ..config("10.0.0.1:1")
        };
        assert_eq!(
            one.nfsd_arguments().join(" "),
            "--no-udp -N 3 -V 4.0 -N 4.1 -N 4.2 --host 10.0.0.1 --port 1 1"
        );
    }
}
