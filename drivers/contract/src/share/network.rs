//! The addresses that an access rule is about.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// An IP network; a single host is one with the longest prefix. The bits behind the prefix are zero, and what an
/// IPv6 spelling of IPv4 says is IPv4, so equal networks compare equal however they were written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

/// The prefix of the IPv6 addresses that stand for IPv4 (RFC 4291 2.5.5.2).
const MAPPED_PREFIX: u8 = 96;

impl Network {
    /// Parses an address (`10.0.0.7`, `fd00::7`) or a network (`10.0.0.0/24`, `::/0`).
    ///
    /// # Errors
    /// Says what is wrong: a name, bits behind the prefix, a prefix that is too long.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| {
            format!("{text:?} is not an IPv4 or IPv6 address or network; names are not looked up")
        })?;
        let longest = bits_of(address);
        let prefix = match prefix {
            None => longest,
            // `u8::from_str` takes a sign, an operator's typing error.
            Some(digits) if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) => digits
                .parse()
                .ok()
                .filter(|prefix| *prefix <= longest)
                .ok_or_else(|| format!("{text:?}: a prefix is at most {longest}"))?,
            Some(_) => return Err(format!("{text:?}: a prefix is a number up to {longest}")),
        };
        let network = Self {
            address: masked(address, prefix),
            prefix,
        };
        if network.address != address {
            return Err(format!(
                "{text:?} has bits behind its prefix; the network is {network}, the host {address}"
            ));
        }
        Ok(network.without_mapping())
    }

    /// Returns the network of one host.
    pub fn host(address: IpAddr) -> Self {
        let address = address.to_canonical();
        Self {
            address,
            prefix: bits_of(address),
        }
    }

    /// Returns its first address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Returns how many leading bits all its addresses share.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Tells whether it is of IPv6.
    pub fn is_ipv6(&self) -> bool {
        self.address.is_ipv6()
    }

    /// Tells whether it is `0.0.0.0` or `::` alone, which no client has (RFC 1122 3.2.1.3, RFC 4291 2.5.2).
    pub fn is_unspecified_host(&self) -> bool {
        self.address.is_unspecified() && self.prefix == bits_of(self.address)
    }

    /// Tells whether an address lies in it. An IPv4 client is one however its address is written, and lies in no
    /// IPv6 network, not even in `::/0`.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv6() == self.is_ipv6() && masked(address, self.prefix) == self.address
    }

    /// Tells whether all of another network lies in it.
    pub fn covers(&self, other: &Network) -> bool {
        self.prefix <= other.prefix && self.contains(other.address)
    }

    /// Returns the two networks it is made of; `None` for a single host.
    pub fn halves(&self) -> Option<(Network, Network)> {
        let longest = bits_of(self.address);
        if self.prefix == longest {
            return None;
        }
        let prefix = self.prefix + 1;
        let bit = 1u128 << (longest - prefix);
        let upper = address_of(bits(self.address) | bit, self.is_ipv6());
        let half = |address| Network { address, prefix };
        Some((half(self.address), half(upper)))
    }

    /// Returns how large a part of a family's addresses it is, in units of 2^-128.
    pub(super) fn share_of_family(&self) -> Share {
        match self.prefix {
            0 => Share::ALL,
            prefix => Share::part(1u128 << (128 - u32::from(prefix))),
        }
    }

    fn without_mapping(self) -> Self {
        match self.address {
            IpAddr::V6(address) if self.prefix >= MAPPED_PREFIX => match address.to_ipv4_mapped() {
                Some(address) => Self {
                    address: IpAddr::V4(address),
                    prefix: self.prefix - MAPPED_PREFIX,
                },
                None => self,
            },
            _ => self,
        }
    }
}

/// A part of all addresses of a family: 2^128 parts are all of it, which a u128 does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Share {
    parts: u128,
    is_all: bool,
}

impl Share {
    pub(super) const NONE: Share = Share {
        parts: 0,
        is_all: false,
    };
    const ALL: Share = Share {
        parts: 0,
        is_all: true,
    };

    fn part(parts: u128) -> Self {
        Self { parts, is_all: false }
    }

    /// Adds a part that does not overlap this one.
    pub(super) fn plus(self, other: Share) -> Share {
        let (parts, carried) = self.parts.overflowing_add(other.parts);
        Share {
            parts,
            is_all: self.is_all || other.is_all || carried,
        }
    }
}

fn bits_of(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn address_of(bits: u128, is_ipv6: bool) -> IpAddr {
    if is_ipv6 {
        IpAddr::V6(Ipv6Addr::from_bits(bits))
    } else {
        // Only bits of an IPv4 address come here.
        IpAddr::V4(std::net::Ipv4Addr::from_bits(bits as u32))
    }
}

fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    let behind = u32::from(bits_of(address).saturating_sub(prefix));
    let kept = u128::MAX.checked_shl(behind).unwrap_or(0);
    address_of(bits(address) & kept, address.is_ipv6())
}

impl fmt::Display for Network {
    /// The canonical form: a host without its prefix, IPv6 as in RFC 5952.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.prefix == bits_of(self.address) {
            self.address.fmt(f)
        } else {
            write!(f, "{}/{}", self.address, self.prefix)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_network_has_one_form_however_it_is_written() {
        for (written, canonical) in [
            ("10.0.0.7", "10.0.0.7"),
            ("10.0.0.7/32", "10.0.0.7"),
            ("10.0.0.0/24", "10.0.0.0/24"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("0.0.0.0", "0.0.0.0"),
            ("::/0", "::/0"),
            ("FD00:0:0::0007", "fd00::7"),
            ("fd00::7/128", "fd00::7"),
            ("fd00:0000::/64", "fd00::/64"),
            ("::ffff:10.0.0.7", "10.0.0.7"),
            ("::ffff:a00:0/120", "10.0.0.0/24"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
        ] {
            assert_eq!(
                Network::parse(written).unwrap().to_string(),
                canonical,
                "{written}"
            );
        }
    }

    #[test]
    fn what_is_no_network_is_refused_with_what_would_be_right() {
        for (written, part) in [
            ("10.0.0.7/24", "the network is 10.0.0.0/24, the host 10.0.0.7"),
            ("fd00::7/64", "the network is fd00::/64"),
            ("10.0.0.0/33", "at most 32"),
            ("::/129", "at most 128"),
            ("10.0.0.0/", "a number"),
            ("10.0.0.0/+8", "a number"),
            ("10.0.0.0/-1", "a number"),
            ("10.0.0.0/255.0.0.0", "a number"),
            ("10.0.0", "names are not looked up"),
            ("010.0.0.1", "names are not looked up"),
            ("client.example", "names are not looked up"),
            ("*", "names are not looked up"),
            ("", "names are not looked up"),
            (" 10.0.0.1", "names are not looked up"),
            ("[fd00::1]", "names are not looked up"),
            ("fe80::1%eth0", "names are not looked up"),
            ("::ffff:10.0.0.7/90", "bits behind"),
        ] {
            let problem = Network::parse(written).unwrap_err();
            assert!(problem.contains(part), "{written}: {problem}");
        }
    }

    #[test]
    fn families_are_kept_apart_and_mapped_clients_are_ipv4() {
        let contains =
            |network: &str, client: &str| Network::parse(network).unwrap().contains(client.parse().unwrap());
        assert!(contains("10.0.0.0/8", "::ffff:10.1.2.3"));
        assert!(contains("0.0.0.0/0", "::ffff:10.1.2.3"));
        assert!(!contains("::/0", "::ffff:10.1.2.3"));
        assert!(!contains("::/0", "10.1.2.3"));
        assert!(!contains("0.0.0.0/0", "fd00::1"));
        assert!(contains("::/0", "fd00::1"));
        assert!(!contains("10.0.0.0/30", "10.0.0.4"));
    }

    #[test]
    fn halves_are_the_whole_and_do_not_overlap() {
        for text in ["0.0.0.0/0", "10.0.0.0/31", "::/0", "fd00::/64", "fd00::2/127"] {
            let whole = Network::parse(text).unwrap();
            let (low, high) = whole.halves().unwrap();
            assert!(whole.covers(&low) && whole.covers(&high) && !low.covers(&high) && !high.covers(&low));
            let both = low.share_of_family().plus(high.share_of_family());
            assert_eq!(both, whole.share_of_family(), "{text}");
        }
        assert_eq!(Network::parse("10.0.0.1").unwrap().halves(), None);
    }
}
