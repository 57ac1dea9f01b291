//! What the kernel remembers of the answers that `rpc.mountd` has given it.
//!
//! A client's address is first turned into a domain, which is the list of all lines that fit it (`10.0.0.0/8,10.0.0.7/32`);
//! a domain and a path then into what may be done. Both answers are kept for half an hour. Loading a table empties the
//! caches, but an answer that was being made from the table before may be given after that. So they are read, and emptied
//! again when they do not say what the table says.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use quarry_contract::{AccessLevel, Network};

use crate::table::client_of;

/// What the kernel has: domains by address, and what they may do with a path.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Caches {
    addresses: Vec<(IpAddr, String)>,
    exports: Vec<(PathBuf, String, AccessLevel)>,
}

impl Caches {
    /// Parses the caches `auth.unix.ip` and `nfsd.export`, as the kernel prints them. Lines that begin with `# ` are of
    /// answers that are missing, refused, or no longer used.
    pub(crate) fn parse(addresses: &str, exports: &str) -> Self {
        let address = |line: &str| {
            let mut fields = line.split_ascii_whitespace();
            let is_ours = fields.next()? == "nfsd";
            let (address, domain) = (fields.next()?.parse().ok()?, fields.next()?.to_owned());
            is_ours.then_some((address, domain))
        };
        let export = |line: &str| {
            let (path, rest) = line.split_once('\t')?;
            let (domain, options) = rest.rsplit_once('(')?;
            let level = match options.split(',').next()? {
                "ro" => AccessLevel::ReadOnly,
                "rw" => AccessLevel::ReadWrite,
                _ => return None,
            };
            Some((path.into(), domain.to_owned(), level))
        };
        let is_used = |line: &&str| !line.starts_with('#');
        Self {
            addresses: addresses.lines().filter(is_used).filter_map(address).collect(),
            exports: exports.lines().filter(is_used).filter_map(export).collect(),
        }
    }

    /// Returns what contradicts a table, by path; with an empty path what is about no path. `table` has the lines of each
    /// path of ours below `root`, in their order.
    pub(crate) fn contradictions(
        &self,
        root: &Path,
        table: &BTreeMap<PathBuf, Vec<(Network, AccessLevel)>>,
    ) -> BTreeSet<PathBuf> {
        let mut wrong = BTreeSet::new();
        let all: BTreeMap<Network, String> = table
            .values()
            .flatten()
            .map(|(network, _)| (*network, client_of(*network)))
            .collect();
        for (address, domain) in &self.addresses {
            // With many lines in all, a domain is one address, whose lines are looked up for each path.
            if domain.starts_with('$') {
                continue;
            }
            let members: BTreeSet<&str> = domain.split(',').collect();
            let fits = |(network, client): (&Network, &String)| {
                network.contains(*address) == members.contains(client.as_str())
            };
            if !all.iter().all(fits) {
                wrong.insert(PathBuf::new());
            }
        }
        for (path, domain, level) in &self.exports {
            if path.parent() != Some(root) {
                continue;
            }
            let decides = |network: &Network| match domain.strip_prefix('$') {
                Some(address) => address.parse().is_ok_and(|address| network.contains(address)),
                None => domain.split(',').any(|member| member == client_of(*network)),
            };
            let lines = table.get(path).map_or(&[][..], Vec::as_slice);
            let wanted = lines.iter().find(|(network, _)| decides(network));
            if wanted.map(|(_, level)| level) != Some(level) {
                wrong.insert(path.clone());
            }
        }
        wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use AccessLevel::{ReadOnly, ReadWrite};

    const ADDRESSES: &str = "#class IP domain\n\
        nfsd 10.1.0.12 0.0.0.0/1,10.1.0.0/24\n\
        # nfsd 10.1.0.13 10.1.0.0/24\n\
        nfsd 10.1.0.11 0.0.0.0/1,10.1.0.0/24,10.1.0.11/32\n\
        nfsd fd00::7 -no-domain-\n";
    const EXPORTS: &str = "#path domain(flags)\n\
        /\t0.0.0.0/1,10.1.0.0/24(ro,insecure,no_root_squash,sync,v4root,fsid=0,sec=390003:1)\n\
        /srv/a\t0.0.0.0/1,10.1.0.0/24(ro,insecure,no_root_squash,sync,uuid=6f1e2d3c:00004000,sec=1)\n\
        # /srv/a\t0.0.0.0/1,10.1.0.0/24(rw,insecure,no_root_squash,sync,uuid=6f1e2d3c:00004000,sec=1)\n\
        /srv/a\t0.0.0.0/1,10.1.0.0/24,10.1.0.11/32(rw,insecure,sync,sec=1)\n\
        /srv/b\t0.0.0.0/1()\n";

    fn table(
        a: &[(&str, AccessLevel)],
        b: &[(&str, AccessLevel)],
    ) -> BTreeMap<PathBuf, Vec<(Network, AccessLevel)>> {
        let lines = |lines: &[(&str, AccessLevel)]| {
            lines
                .iter()
                .map(|(network, level)| (Network::parse(network).unwrap(), *level))
                .collect()
        };
        [("/srv/a".into(), lines(a)), ("/srv/b".into(), lines(b))].into()
    }

    fn contradictions(a: &[(&str, AccessLevel)], b: &[(&str, AccessLevel)]) -> Vec<String> {
        let caches = Caches::parse(ADDRESSES, EXPORTS);
        let wrong = caches.contradictions(Path::new("/srv"), &table(a, b)).into_iter();
        wrong.map(|path| path.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn what_the_kernel_remembers_is_compared_with_the_table() {
        let everybody = [("0.0.0.0/1", ReadWrite)];
        let a = [("10.1.0.11", ReadWrite), ("10.1.0.0/24", ReadOnly)];
        assert_eq!(contradictions(&a, &everybody), [""; 0]);
        let turned = [("10.1.0.11", ReadOnly), ("10.1.0.0/24", ReadOnly)];
        assert_eq!(contradictions(&turned, &everybody), ["/srv/a"]);
        let narrowed = [
            ("10.1.0.11", ReadWrite),
            ("10.1.0.12", ReadOnly),
            ("10.1.0.0/24", ReadOnly),
        ];
        assert_eq!(
            contradictions(&narrowed, &everybody),
            [""],
            "10.1.0.12 is known by too little"
        );
        assert_eq!(
            contradictions(&[], &everybody),
            ["/srv/a"],
            "it is no longer exported"
        );
    }

    #[test]
    fn a_domain_of_one_address_is_looked_up() {
        let exports = "/srv/a\t$10.1.0.11(rw,sync)\n/srv/a\t$10.1.0.12(ro,sync)\n";
        let caches = Caches::parse("nfsd 10.1.0.11 $10.1.0.11\n", exports);
        let contradictions =
            |a: &[(&str, AccessLevel)]| caches.contradictions(Path::new("/srv"), &table(a, &[])).len();
        assert_eq!(
            contradictions(&[("10.1.0.11", ReadWrite), ("10.1.0.0/24", ReadOnly)]),
            0
        );
        assert_eq!(
            contradictions(&[("10.1.0.11", ReadOnly), ("10.1.0.0/24", ReadOnly)]),
            1
        );
    }
}
