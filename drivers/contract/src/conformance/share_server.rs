//! What every [`ShareServer`] promises (N1 to N7), judged by what clients at real addresses can do.

use std::net::IpAddr;
use std::sync::Arc;

use super::{block_on, eventually};
use crate::AccessLevel::{ReadOnly, ReadWrite};
use crate::{
    AccessLevel, AccessRule, AccessRuleId, AccessTable, ClientKind, EnforceableAccess, ErrorKind,
    LoadedAccess, MountedShare, ShareExport, ShareServer, ShareVersion, Squash, resolve_access,
};

/// The IPv4 addresses of the clients that a fixture has, in the order of their numbers.
pub const IPV4_CLIENTS: [&str; 3] = ["10.77.0.11", "10.77.0.12", "10.77.0.13"];
/// Their IPv6 addresses.
pub const IPV6_CLIENTS: [&str; 3] = ["fd77::11", "fd77::12", "fd77::13"];

/// How the suite gets servers and clients.
pub trait ShareServerFixture {
    /// Makes a server without exports.
    fn fresh(&mut self) -> Arc<dyn ShareServer>;

    /// Mounts an empty file system that nothing has exported yet, a different one at each call.
    fn mount(&mut self) -> MountedShare;

    /// Returns what the client at an address can do with an export at this moment: nothing, read, or write too.
    fn attempt(
        &mut self,
        server: &Arc<dyn ShareServer>,
        version: ShareVersion,
        client: IpAddr,
    ) -> Option<AccessLevel>;

    /// Kills the server under its caller; false when there is nothing to kill.
    fn kill(&mut self, server: &Arc<dyn ShareServer>) -> bool;
}

/// Runs every check.
///
/// # Panics
/// When the server breaks its contract; the message begins with the clause.
pub fn run(fixture: &mut dyn ShareServerFixture) {
    an_export_without_entries_is_reachable_by_nobody(fixture);
    clients_get_what_the_longest_prefix_says(fixture);
    changes_are_live(fixture);
    exports_are_books(fixture);
    other_file_systems_are_refused(fixture);
    a_killed_server_comes_back(fixture);
}

fn table(rules: &[(&str, AccessLevel)]) -> AccessTable {
    let rules: Vec<AccessRule> = rules
        .iter()
        .enumerate()
        .map(|(index, (client, level))| AccessRule {
            id: AccessRuleId(uuid::Uuid::from_u128(index as u128 + 1)),
            kind: ClientKind::Ip,
            client: (*client).to_owned(),
            level: *level,
        })
        .collect();
    let can = EnforceableAccess {
        kinds: vec![ClientKind::Ip],
        ipv4: true,
        ipv6: true,
        refused_ipv6_prefixes: None,
    };
    resolve_access(&rules, &can).0
}

fn export(mounted: &MountedShare, access: AccessTable) -> ShareExport {
    ShareExport {
        mounted: mounted.clone(),
        access,
        squash: Squash::None,
    }
}

fn clients() -> impl Iterator<Item = IpAddr> {
    IPV4_CLIENTS
        .into_iter()
        .chain(IPV6_CLIENTS)
        .map(|client| client.parse().expect("an address"))
}

#[track_caller]
fn assert_enforced(
    label: &str,
    fixture: &mut dyn ShareServerFixture,
    server: &Arc<dyn ShareServer>,
    version: ShareVersion,
    access: &AccessTable,
) {
    let loaded = block_on(server.loaded(version)).expect("loaded");
    assert_eq!(
        loaded,
        Some(LoadedAccess::of(access)),
        "N3: {label}: what is loaded"
    );
    for client in clients() {
        let expected = access.decide(client).map(|entry| entry.level);
        let found = fixture.attempt(server, version, client);
        assert_eq!(found, expected, "{label}: what {client} can do");
    }
}

fn an_export_without_entries_is_reachable_by_nobody(fixture: &mut dyn ShareServerFixture) {
    let server = fixture.fresh();
    assert!(!server.portals().is_empty(), "N2: a server has an address");
    let mounted = fixture.mount();
    for client in clients() {
        let found = fixture.attempt(&server, mounted.version, client);
        assert_eq!(found, None, "N1: not exported, {client}");
    }
    let nobody = AccessTable::default();
    block_on(server.export(&export(&mounted, nobody.clone()))).expect("export");
    assert_enforced("N1: no entries", fixture, &server, mounted.version, &nobody);
    block_on(server.shutdown());
}

fn clients_get_what_the_longest_prefix_says(fixture: &mut dyn ShareServerFixture) {
    let server = fixture.fresh();
    let mounted = fixture.mount();
    let cases: &[&[(&str, AccessLevel)]] = &[
        &[("10.77.0.11", ReadWrite), ("10.77.0.12", ReadOnly)],
        &[("10.77.0.0/24", ReadOnly), ("10.77.0.11", ReadWrite)],
        &[("10.77.0.11", ReadOnly), ("10.77.0.0/24", ReadWrite)],
        &[
            ("10.77.0.12/31", ReadOnly),
            ("10.77.0.8/29", ReadWrite),
            ("fd77::12", ReadWrite),
        ],
        &[
            ("fd77::/64", ReadOnly),
            ("fd77::11", ReadWrite),
            ("fd77::12/127", ReadWrite),
        ],
        &[("0.0.0.0/0", ReadOnly)],
        &[("0.0.0.0/0", ReadOnly), ("10.77.0.13", ReadWrite)],
        &[("::/0", ReadWrite)],
        &[("::/0", ReadWrite), ("fd77::11", ReadOnly)],
        &[("::/1", ReadWrite), ("8000::/1", ReadOnly)],
        &[
            ("0.0.0.0/0", ReadWrite),
            ("::/0", ReadOnly),
            ("10.0.0.0/8", ReadOnly),
            ("fd00::/8", ReadWrite),
        ],
        &[
            ("::ffff:10.77.0.11", ReadWrite),
            ("::ffff:10.77.0.12/127", ReadOnly),
        ],
        &[("192.0.2.0/24", ReadWrite), ("2001:db8::/32", ReadWrite)],
    ];
    for rules in cases {
        let access = table(rules);
        block_on(server.export(&export(&mounted, access.clone())))
            .unwrap_or_else(|error| panic!("N3: {rules:?}: {error}"));
        assert_enforced(
            &format!("N1: {rules:?}"),
            fixture,
            &server,
            mounted.version,
            &access,
        );
    }
    block_on(server.shutdown());
}

fn changes_are_live(fixture: &mut dyn ShareServerFixture) {
    let server = fixture.fresh();
    let (one, two) = (fixture.mount(), fixture.mount());
    let everybody = table(&[("0.0.0.0/0", ReadWrite), ("::/0", ReadWrite)]);
    block_on(server.export(&export(&two, everybody.clone()))).expect("export");
    for round in 0..6 {
        let level = if round % 2 == 0 { ReadWrite } else { ReadOnly };
        let access = table(&[(IPV4_CLIENTS[round % 3], level), (IPV6_CLIENTS[round % 2], level)]);
        let changed = block_on(server.export(&export(&one, access.clone()))).expect("export");
        assert!(changed.is_changed(), "N3: another table is Changed");
        assert_enforced("N3: live", fixture, &server, one.version, &access);
        let again = block_on(server.export(&export(&one, access))).expect("export again");
        assert!(!again.is_changed(), "N3: the same table is Unchanged");
    }
    assert_enforced("N4: the other export", fixture, &server, two.version, &everybody);
    block_on(server.unexport(one.version)).expect("unexport");
    for client in clients() {
        assert_eq!(
            fixture.attempt(&server, one.version, client),
            None,
            "N5: {client}"
        );
    }
    assert_enforced("N4: the other export", fixture, &server, two.version, &everybody);
    block_on(server.shutdown());
}

fn exports_are_books(fixture: &mut dyn ShareServerFixture) {
    let server = fixture.fresh();
    let (one, two) = (fixture.mount(), fixture.mount());
    assert_ne!(
        server.path_of(one.version),
        server.path_of(two.version),
        "N2: each its own path"
    );
    assert_eq!(block_on(server.exports()).expect("exports"), [], "a fresh server");
    let access = table(&[("10.77.0.11", ReadWrite)]);
    for mounted in [&two, &one] {
        let made = block_on(server.export(&export(mounted, access.clone()))).expect("export");
        assert!(made.is_changed(), "N3: a new export is Changed");
    }
    let mut expected = vec![one.version, two.version];
    expected.sort_unstable();
    assert_eq!(
        block_on(server.exports()).expect("exports"),
        expected,
        "all, ordered"
    );
    assert!(
        block_on(server.unexport(one.version))
            .expect("unexport")
            .is_changed(),
        "N3: unexport"
    );
    assert!(
        !block_on(server.unexport(one.version))
            .expect("again")
            .is_changed(),
        "N3: unexport again"
    );
    assert_eq!(
        block_on(server.exports()).expect("exports"),
        [two.version],
        "what is left"
    );
    assert_eq!(
        block_on(server.loaded(one.version)).expect("loaded"),
        None,
        "nothing is loaded"
    );
    let made = block_on(server.export(&export(&one, access.clone()))).expect("export");
    assert!(made.is_changed(), "N3: exported anew");
    assert_enforced("N3: exported anew", fixture, &server, one.version, &access);
    block_on(server.shutdown());
}

fn other_file_systems_are_refused(fixture: &mut dyn ShareServerFixture) {
    let server = fixture.fresh();
    if server.driver() == "memory" {
        // It has no paths that could lead elsewhere.
        return;
    }
    let (one, two) = (fixture.mount(), fixture.mount());
    let access = table(&[("0.0.0.0/0", ReadWrite), ("::/0", ReadWrite)]);
    let elsewhere = MountedShare {
        path: two.path.clone(),
        ..one.clone()
    };
    let gone = MountedShare {
        path: one.path.with_extension("gone"),
        ..one.clone()
    };
    for wrong in [elsewhere, gone] {
        let refused = block_on(server.export(&export(&wrong, access.clone())));
        let kind = refused.expect_err("N6: another file system").kind();
        assert_eq!(kind, ErrorKind::Corrupt, "N6: {}", wrong.path.display());
        for client in clients() {
            assert_eq!(
                fixture.attempt(&server, one.version, client),
                None,
                "N6: {client}"
            );
        }
    }
    block_on(server.shutdown());
}

fn a_killed_server_comes_back(fixture: &mut dyn ShareServerFixture) {
    let server = fixture.fresh();
    let (one, two) = (fixture.mount(), fixture.mount());
    let access = table(&[("10.77.0.11", ReadWrite), ("10.77.0.0/24", ReadOnly)]);
    block_on(server.export(&export(&one, access.clone()))).expect("export");
    if !fixture.kill(&server) {
        return;
    }
    eventually("N7: the server answers again", || {
        block_on(server.loaded(one.version)).is_ok_and(|loaded| loaded.is_some())
    });
    assert_enforced("N7: after a kill", fixture, &server, one.version, &access);
    block_on(server.export(&export(&two, access.clone()))).expect("N7: export after a kill");
    assert_enforced("N7: a new export", fixture, &server, two.version, &access);
    block_on(server.shutdown());
}
