//! Where a target is: `iscsi://[USER%SECRET@]HOST[:PORT]/TARGET/LUN`, as libiscsi writes it.

use std::str::FromStr;

use anyhow::{Context, bail};

/// A logical unit and how to get in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    /// Host and port, as `TcpStream::connect` takes them.
    pub address: String,
    /// The target's name.
    pub target: String,
    /// The logical unit's number.
    pub lun: u16,
    /// User and secret for CHAP.
    pub credentials: Option<(String, String)>,
}

impl FromStr for Url {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let rest = text
            .strip_prefix("iscsi://")
            .context("a URL starts with iscsi://")?;
        let (authority, path) = rest.split_once('/').context("a URL ends with /TARGET/LUN")?;
        let (target, lun) = path.rsplit_once('/').context("a URL ends with /TARGET/LUN")?;
        let (credentials, host) = match authority.rsplit_once('@') {
            Some((user, host)) => {
                let (name, secret) = user.split_once('%').context("credentials are USER%SECRET")?;
                (Some((name.to_owned(), secret.to_owned())), host)
            }
            None => (None, authority),
        };
        if host.is_empty() || target.is_empty() {
            bail!("a URL names a host and a target");
        }
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
        Ok(Self {
            address: match has_port {
                true => host.to_owned(),
                false => format!("{host}:3260"),
            },
            target: target.to_owned(),
            lun: lun.parse().context("a LUN is a number")?,
            credentials,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_with_and_without_credentials_and_port() {
        let url: Url = "iscsi://joe%s3cret@127.0.0.1:3261/iqn.2026-11.io.x:vol/1"
            .parse()
            .unwrap();
        assert_eq!(url.address, "127.0.0.1:3261");
        assert_eq!(url.target, "iqn.2026-11.io.x:vol");
        assert_eq!(url.lun, 1);
        assert_eq!(url.credentials, Some(("joe".to_owned(), "s3cret".to_owned())));
        let url: Url = "iscsi://[::1]/iqn.x/0".parse().unwrap();
        assert_eq!((url.address.as_str(), url.credentials), ("[::1]:3260", None));
    }

    #[test]
    fn malformed_urls_are_refused() {
        for text in [
            "nbd://host/x",
            "iscsi://host",
            "iscsi://host/iqn",
            "iscsi://host/iqn/x",
            "iscsi://joe@host/iqn/0",
            "iscsi:///iqn/0",
        ] {
            assert!(text.parse::<Url>().is_err(), "{text}");
        }
    }
}
