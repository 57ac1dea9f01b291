use super::*;

use AccessLevel::{ReadOnly, ReadWrite};

const ALL: EnforceableAccess = EnforceableAccess {
    kinds: Vec::new(),
    ipv4: true,
    ipv6: true,
    refused_ipv6_prefixes: None,
};

fn by_ip() -> EnforceableAccess {
    EnforceableAccess {
        kinds: vec![ClientKind::Ip],
        ..ALL
    }
}

fn id(number: u128) -> AccessRuleId {
    AccessRuleId(uuid::Uuid::from_u128(number))
}

fn rule(number: u128, client: &str, level: AccessLevel) -> AccessRule {
    AccessRule {
        id: id(number),
        kind: ClientKind::Ip,
        client: client.to_owned(),
        level,
    }
}

/// Rules numbered from 1.
fn rules(list: &[(&str, AccessLevel)]) -> Vec<AccessRule> {
    let each =
        |(index, (client, level)): (usize, &(&str, AccessLevel))| rule(index as u128 + 1, client, *level);
    list.iter().enumerate().map(each).collect()
}

/// Every order of up to five things.
fn permutations<T: Clone>(things: &[T]) -> Vec<Vec<T>> {
    if things.len() <= 1 {
        return vec![things.to_vec()];
    }
    let mut all = Vec::new();
    for first in 0..things.len() {
        let mut rest = things.to_vec();
        let first = rest.remove(first);
        for mut tail in permutations(&rest) {
            tail.insert(0, first.clone());
            all.push(tail);
        }
    }
    all
}

/// What a client may do by rules in a row; the same however they are ordered.
struct Case {
    rules: &'static [(&'static str, AccessLevel)],
    clients: &'static [(&'static str, Option<AccessLevel>)],
}

const DECISIONS: &[Case] = &[
    Case {
        rules: &[],
        clients: &[("10.0.0.1", None), ("fd00::1", None)],
    },
    Case {
        rules: &[
            ("10.0.0.0/8", ReadOnly),
            ("10.1.0.0/16", ReadWrite),
            ("10.1.2.3", ReadOnly),
        ],
        clients: &[
            ("10.0.0.1", Some(ReadOnly)),
            ("10.1.0.1", Some(ReadWrite)),
            ("10.1.2.3", Some(ReadOnly)),
            ("10.1.2.4", Some(ReadWrite)),
            ("11.0.0.1", None),
            ("::ffff:10.1.0.1", Some(ReadWrite)),
        ],
    },
    Case {
        rules: &[("0.0.0.0/0", ReadOnly), ("192.0.2.0/24", ReadWrite)],
        clients: &[
            ("192.0.2.9", Some(ReadWrite)),
            ("192.0.3.9", Some(ReadOnly)),
            ("2001:db8::1", None),
        ],
    },
    Case {
        rules: &[("::/0", ReadWrite), ("2001:db8::/32", ReadOnly)],
        clients: &[
            ("2001:db8::1", Some(ReadOnly)),
            ("2001:db9::1", Some(ReadWrite)),
            ("10.0.0.1", None),
            ("::ffff:10.0.0.1", None),
        ],
    },
    Case {
        rules: &[
            ("10.0.0.1", ReadOnly),
            ("10.0.0.1/32", ReadWrite),
            ("::ffff:10.0.0.1", ReadOnly),
        ],
        clients: &[("10.0.0.1", Some(ReadWrite)), ("10.0.0.2", None)],
    },
    Case {
        rules: &[
            ("10.0.0.7/24", ReadWrite),
            ("host", ReadWrite),
            ("10.0.0.0/25", ReadOnly),
        ],
        clients: &[("10.0.0.7", Some(ReadOnly)), ("10.0.0.200", None)],
    },
    Case {
        rules: &[
            ("10.0.0.0/25", ReadOnly),
            ("10.0.0.128/25", ReadOnly),
            ("10.0.0.0/24", ReadWrite),
            ("10.0.0.0/16", ReadOnly),
            ("10.0.0.64/26", ReadWrite),
        ],
        clients: &[
            ("10.0.0.1", Some(ReadOnly)),
            ("10.0.0.65", Some(ReadWrite)),
            ("10.0.0.129", Some(ReadOnly)),
            ("10.0.1.1", Some(ReadOnly)),
        ],
    },
];

#[test]
fn longest_prefix_decides_whatever_the_order_of_the_rules() {
    for case in DECISIONS {
        let rules = rules(case.rules);
        let (expected, _) = resolve_access(&rules, &by_ip());
        for order in permutations(&rules) {
            let (table, _) = resolve_access(&order, &by_ip());
            assert_eq!(table, expected, "A3: {order:?}");
            for (client, level) in case.clients {
                let decided = table.decide(client.parse().unwrap()).map(|entry| entry.level);
                assert_eq!(decided, *level, "A1: {client} by {order:?}");
            }
        }
    }
}

#[test]
fn entries_decide_from_the_first_to_the_last() {
    let rules = rules(&[
        ("::/0", ReadOnly),
        ("0.0.0.0/0", ReadOnly),
        ("fd00::/8", ReadWrite),
        ("10.0.0.0/8", ReadWrite),
        ("9.0.0.0/8", ReadWrite),
        ("10.0.0.1", ReadOnly),
    ]);
    let (table, _) = resolve_access(&rules, &by_ip());
    let order: Vec<String> = table
        .entries()
        .iter()
        .map(|entry| entry.network.to_string())
        .collect();
    assert_eq!(
        order,
        [
            "10.0.0.1",
            "9.0.0.0/8",
            "10.0.0.0/8",
            "0.0.0.0/0",
            "fd00::/8",
            "::/0"
        ]
    );
}

fn shadows(list: &[(&str, AccessLevel)]) -> Vec<Vec<u128>> {
    let (_, statuses) = resolve_access(&rules(list), &by_ip());
    let of = |status: RuleStatus| match status.state {
        RuleState::Active { shadowed_by, .. } => shadowed_by.iter().map(|id| id.0.as_u128()).collect(),
        RuleState::Refused(refused) => panic!("{refused}"),
    };
    statuses.into_iter().map(of).collect()
}

#[test]
fn a_rule_that_decides_for_nobody_names_what_decides_in_its_place() {
    assert_eq!(
        shadows(&[("10.0.0.1", ReadOnly), ("10.0.0.1/32", ReadWrite)]),
        [vec![2], vec![]]
    );
    assert_eq!(
        shadows(&[("10.0.0.1", ReadOnly), ("10.0.0.1/32", ReadOnly)]),
        [vec![], vec![1]]
    );
    assert_eq!(
        shadows(&[("10.0.0.0/24", ReadOnly), ("10.0.0.0/25", ReadWrite)]),
        [Vec::<u128>::new(), vec![]]
    );
    assert_eq!(
        shadows(&[
            ("10.0.0.0/24", ReadOnly),
            ("10.0.0.0/25", ReadWrite),
            ("10.0.0.128/26", ReadWrite),
            ("10.0.0.192/26", ReadWrite),
            ("10.0.0.193", ReadOnly),
        ]),
        [vec![2, 3, 4, 5], vec![], vec![], vec![], vec![]]
    );
    assert_eq!(
        shadows(&[("::/0", ReadOnly), ("::/1", ReadWrite), ("8000::/1", ReadWrite)]),
        [vec![2, 3], vec![], vec![]]
    );
    assert_eq!(
        shadows(&[("::/0", ReadOnly), ("0.0.0.0/0", ReadWrite)]),
        [Vec::<u128>::new(), vec![]]
    );
}

#[test]
fn rules_that_cannot_be_enforced_are_refused_each_for_its_reason_and_grant_nothing() {
    let only_ipv4 = EnforceableAccess {
        ipv6: false,
        ..by_ip()
    };
    let mut list = rules(&[
        ("fd00::1", ReadWrite),
        ("host.example", ReadWrite),
        ("10.0.0.1", ReadOnly),
    ]);
    list.push(AccessRule {
        kind: ClientKind::User,
        ..rule(9, "10.0.0.2", ReadWrite)
    });
    let (table, statuses) = resolve_access(&list, &only_ipv4);
    assert_eq!(table.entries().len(), 1);
    assert!(matches!(
        &statuses[0].state,
        RuleState::Refused(RefusedRule::UnsupportedFamily { family: "IPv6" })
    ));
    assert!(matches!(
        &statuses[1].state,
        RuleState::Refused(RefusedRule::InvalidClient { .. })
    ));
    assert!(matches!(
        &statuses[2].state,
        RuleState::Active {
            effective: ReadOnly,
            ..
        }
    ));
    assert!(matches!(
        &statuses[3].state,
        RuleState::Refused(RefusedRule::UnsupportedKind {
            kind: ClientKind::User
        })
    ));
    assert_eq!(table.decide("10.0.0.2".parse().unwrap()), None);
    let ids: Vec<AccessRuleId> = statuses.iter().map(|status| status.id).collect();
    assert_eq!(ids, [id(1), id(2), id(3), id(9)]);
}

/// Ganesha takes `0.0.0.0` for everybody.
#[test]
fn the_address_that_no_client_has_names_nobody() {
    for (client, everybody) in [
        ("0.0.0.0", "0.0.0.0/0"),
        ("0.0.0.0/32", "0.0.0.0/0"),
        ("::ffff:0.0.0.0", "0.0.0.0/0"),
        ("::", "::/0"),
        ("::/128", "::/0"),
    ] {
        let list = rules(&[(client, ReadWrite), ("10.0.0.1", ReadOnly)]);
        let (table, statuses) = resolve_access(&list, &by_ip());
        assert_eq!(table.entries().len(), 1, "A2: {client}");
        let RuleState::Refused(refused) = &statuses[0].state else {
            panic!("{client} is {:?}", statuses[0].state)
        };
        assert!(refused.to_string().contains(everybody), "{client}: {refused}");
    }
    let (table, _) = resolve_access(&rules(&[("0.0.0.0/31", ReadOnly), ("::/0", ReadOnly)]), &by_ip());
    assert_eq!(table.entries().len(), 2);
}

#[test]
fn networks_that_a_server_cannot_tell_apart_are_refused() {
    let can = EnforceableAccess {
        refused_ipv6_prefixes: Some(100..=119),
        ..by_ip()
    };
    let list = rules(&[
        ("fd00::/99", ReadWrite),
        ("fd00::/100", ReadWrite),
        ("fd00::/119", ReadWrite),
        ("fd00::/120", ReadWrite),
    ]);
    let (table, statuses) = resolve_access(&list, &can);
    let is_refused = |status: &RuleStatus| matches!(status.state, RuleState::Refused(_));
    let refused: Vec<bool> = statuses.iter().map(is_refused).collect();
    assert_eq!(refused, [false, true, true, false]);
    assert_eq!(table.entries().len(), 2);
}

#[test]
fn a_table_cast_to_read_only_grants_no_writes_and_to_nobody_else() {
    let list = rules(&[("10.0.0.0/8", ReadWrite), ("10.0.0.1", ReadOnly)]);
    let table = resolve_access(&list, &by_ip()).0.read_only();
    assert!(table.entries().iter().all(|entry| entry.level == ReadOnly));
    assert_eq!(table.entries().len(), 2);
    assert_eq!(table.decide("11.0.0.1".parse().unwrap()), None);
}

/// The sorted list against the definition: of all rules that name a client, one with the longest prefix.
#[test]
fn random_tables_decide_as_the_definition_does() {
    let mut random = crate::conformance::SplitMix::new(7);
    for _ in 0..500 {
        let count = random.below(9) + 1;
        let list: Vec<AccessRule> = (0..count)
            .map(|index| {
                let prefix = random.below(9);
                let address = (random.below(256) as u32) >> (8 - prefix) << (8 - prefix);
                let level = if random.below(2) == 0 { ReadOnly } else { ReadWrite };
                rule(
                    u128::from(index),
                    &format!("10.0.0.{}/{}", address & 255, 24 + prefix),
                    level,
                )
            })
            .collect();
        let (table, statuses) = resolve_access(&list, &by_ip());
        let mut used = std::collections::HashSet::new();
        for last in 0..=255u8 {
            let client = IpAddr::from([10, 0, 0, last]);
            let named: Vec<(u8, AccessLevel)> = list
                .iter()
                .map(|rule| (Network::parse(&rule.client).unwrap(), rule.level))
                .filter(|(network, _)| network.contains(client))
                .map(|(network, level)| (network.prefix(), level))
                .collect();
            let decided = table.decide(client);
            assert_eq!(
                decided.map(|entry| (entry.network.prefix(), entry.level)),
                named.into_iter().max()
            );
            used.extend(decided.map(|entry| entry.rule));
        }
        for status in statuses {
            let RuleState::Active { shadowed_by, .. } = status.state else {
                panic!()
            };
            assert_eq!(
                shadowed_by.is_empty(),
                used.contains(&status.id),
                "{list:?}: {}",
                status.id
            );
        }
    }
}
