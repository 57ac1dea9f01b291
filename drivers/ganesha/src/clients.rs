//! What Ganesha says of its clients: for each its address, whether it has spoken each of the protocols that Ganesha was built
//! with, and when it last did something (`ShowClients`).

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use quarry_contract::ShareClient;
use zbus::{Structure, Variant};

/// How Ganesha names the protocols.
const VERSIONS: [(&str, &str); 4] = [
    ("NFSv3", "3"),
    ("NFSv40", "4.0"),
    ("NFSv41", "4.1"),
    ("NFSv42", "4.2"),
];

/// Reads the answer: a time, and the clients. What is not understood is said.
pub(crate) fn parse(answer: &Structure<'_>) -> Result<Vec<ShareClient>, String> {
    let unknown = || format!("clients like {answer}");
    let Some(Variant::Array(listed)) = answer.fields().get(1) else {
        return Err(unknown());
    };
    let mut clients = Vec::new();
    for one in listed.inner() {
        let Variant::Structure(one) = one else {
            return Err(unknown());
        };
        let [
            Variant::Str(address),
            Variant::Structure(spoken),
            Variant::Structure(time),
        ] = one.fields()
        else {
            return Err(unknown());
        };
        // Its own and those that it could not print have none.
        let Ok(address) = address.parse::<IpAddr>() else {
            continue;
        };
        clients.push(ShareClient {
            address: address.to_canonical(),
            versions: versions(spoken),
            last_seen: last_seen(time),
            held: None,
        });
    }
    clients.sort_unstable_by_key(|client| client.address);
    Ok(clients)
}

/// Pairs of a name and whether it was spoken.
fn versions(spoken: &Structure<'_>) -> Vec<String> {
    let is_pair = |pair: &Variant<'_>, name: &str| match pair {
        Variant::Structure(pair) => {
            matches!(pair.fields(), [Variant::Str(known), Variant::Bool(true)] if known.as_str() == name)
        }
        _ => false,
    };
    let is_spoken = |name: &str| spoken.fields().iter().any(|pair| is_pair(pair, name));
    let known = VERSIONS.iter().filter(|(name, _)| is_spoken(name));
    known.map(|(_, version)| (*version).to_owned()).collect()
}

/// Seconds and nanoseconds; zero for one that has connected and done nothing.
fn last_seen(time: &Structure<'_>) -> Option<SystemTime> {
    match time.fields() {
        [Variant::U64(seconds @ 1..), Variant::U64(_)] => {
            SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(*seconds))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Spoken = ((&'static str, bool), (&'static str, bool), (&'static str, bool));
    type Client = (&'static str, Spoken, (u64, u64));

    #[test]
    fn clients_are_read_with_what_they_speak() {
        let spoken = (("NFSv3", false), ("NFSv40", true), ("NFSv42", true));
        let clients: Vec<Client> = vec![
            ("fd77::11", spoken, (0, 0)),
            ("::ffff:10.0.0.7", spoken, (1_790_000_000, 5)),
            ("<unknown>", spoken, (1, 1)),
        ];
        let answer = Structure::from(((1_u64, 2_u64), clients));
        let parsed = parse(&answer).unwrap();
        let show = |client: &ShareClient| (client.address.to_string(), client.versions.join(" "));
        let shown: Vec<_> = parsed.iter().map(show).collect();
        let both = "4.0 4.2".to_owned();
        assert_eq!(
            shown,
            [("10.0.0.7".into(), both.clone()), ("fd77::11".into(), both)]
        );
        let seen = SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000);
        assert_eq!([parsed[0].last_seen, parsed[1].last_seen], [Some(seen), None]);
        assert!(parse(&Structure::from(((1_u64, 2_u64), "no list"))).is_err());
    }
}
