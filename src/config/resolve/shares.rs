//! The sections of shares: their pools, and the server.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use quarry_contract::{PoolName, PortalRole, ShareAddress};
use quarry_ganesha::{GaneshaConfig, Nfs3};
use quarry_knfsd::KnfsdConfig;
use toml::Spanned;

use super::super::raw::{RawSharePool, RawShareServer, Wrong};
use super::super::{SharePoolConfig, SharePoolDriver, ShareServerConfig};
use super::{absolute, missing, size_of, wrong};

const DEFAULT_NFS_PORT: u16 = 2049;
const DEFAULT_MOUNT_PORT: u16 = 20048;

pub(super) fn resolve(
    pools: BTreeMap<Spanned<String>, RawSharePool>,
    server: Option<RawShareServer>,
    state_dir: &Path,
) -> Result<(Vec<SharePoolConfig>, Option<ShareServerConfig>), Wrong> {
    let mut share_pools = Vec::new();
    for (name, pool) in pools {
        share_pools.push(share_pool(&name, pool, state_dir)?);
    }
    let server = server.map(|server| share_server(server, state_dir)).transpose()?;
    match (share_pools.is_empty(), &server) {
        (false, None) => Err(missing(
            "share_server",
            "there are pools of shares and nothing serves them; add a section [share_server] with listen = \
             \"ADDRESS:2049\"",
        )),
        (true, Some(_)) => Err(missing(
            "share_pool",
            "there is a share server and nothing to serve; add a section like [share_pool.default]",
        )),
        _ => Ok((share_pools, server)),
    }
}

fn share_pool(
    name: &Spanned<String>,
    pool: RawSharePool,
    state_dir: &Path,
) -> Result<SharePoolConfig, Wrong> {
    let key = |setting: &str| format!("share_pool.{}.{setting}", name.get_ref());
    let parsed = PoolName::parse(name.get_ref()).map_err(|problem| wrong("share_pool", name, problem))?;
    let driver = match pool.driver.as_ref().map(|driver| driver.get_ref().as_str()) {
        None | Some("images") => SharePoolDriver::Images(images(&key, name, &pool)?),
        Some("lvm") => SharePoolDriver::Lvm(lvm(&key, name, &pool)?),
        Some(other) => {
            let problem =
                format!("{other:?} is not a driver of share pools; there are \"images\" and \"lvm\"");
            return Err(wrong(
                &key("driver"),
                pool.driver.as_ref().unwrap_or(name),
                problem,
            ));
        }
    };
    let mounts = match &pool.mounts {
        Some(text) => absolute(&key("mounts"), text)?,
        None => state_dir.join("mounts").join(parsed.as_str()),
    };
    Ok(SharePoolConfig {
        name: parsed,
        driver,
        mounts,
    })
}

/// Refuses settings of the other driver.
fn only_for(
    driver: &str,
    key: &impl Fn(&str) -> String,
    settings: &[(&str, &Option<Spanned<String>>)],
) -> Result<(), Wrong> {
    for (name, value) in settings {
        if let Some(value) = value {
            return Err(wrong(
                &key(name),
                value,
                format!("is for driver = {driver:?} only"),
            ));
        }
    }
    Ok(())
}

/// Checks that a size is given only where something may be made, and returns both.
fn creation(key: &impl Fn(&str) -> String, pool: &RawSharePool) -> Result<(bool, Option<u64>), Wrong> {
    let creates = pool.create.as_ref().is_some_and(|create| *create.get_ref());
    let size_bytes = match &pool.size {
        Some(size) if !creates => {
            let problem = "is for create = true only; an existing pool knows its size";
            return Err(wrong(&key("size"), size, problem));
        }
        Some(size) => Some(size_of(&key("size"), size)?),
        None => None,
    };
    Ok((creates, size_bytes))
}

fn images(
    key: &impl Fn(&str) -> String,
    name: &Spanned<String>,
    pool: &RawSharePool,
) -> Result<quarry_images::PoolPlace, Wrong> {
    use quarry_images::{IfAbsent, PoolPlace};

    only_for(
        "lvm",
        key,
        &[
            ("volume_group", &pool.volume_group),
            ("thin_pool", &pool.thin_pool),
        ],
    )?;
    let Some(path) = &pool.path else {
        let problem = "is missing; name a folder, file or block device";
        return Err(wrong(&key("path"), name, problem));
    };
    let path = absolute(&key("path"), path)?;
    let (creates, size_bytes) = creation(key, pool)?;
    let if_absent = match creates {
        true => IfAbsent::Create {
            size_bytes: size_bytes.unwrap_or(0),
        },
        false => IfAbsent::Fail,
    };
    let is_file = size_bytes.is_some() || (path.exists() && !path.is_dir());
    Ok(match is_file {
        true => PoolPlace::File { path, if_absent },
        false => PoolPlace::Folder { path, if_absent },
    })
}

fn lvm(
    key: &impl Fn(&str) -> String,
    name: &Spanned<String>,
    pool: &RawSharePool,
) -> Result<quarry_lvm::PoolPlace, Wrong> {
    use quarry_lvm::{IfAbsent, PoolPlace};

    only_for("images", key, &[("path", &pool.path)])?;
    let named = |setting: &str, value: &Option<Spanned<String>>| match value {
        None => Err(wrong(
            &key(setting),
            name,
            "is missing; `vgs` and `lvs` list what there is",
        )),
        Some(value) if quarry_lvm::is_lvm_name(value.get_ref()) => Ok(value.get_ref().clone()),
        Some(value) => {
            let problem = format!("{:?} is no name that LVM takes", value.get_ref());
            Err(wrong(&key(setting), value, problem))
        }
    };
    let (creates, size_bytes) = creation(key, pool)?;
    Ok(PoolPlace {
        volume_group: named("volume_group", &pool.volume_group)?,
        thin_pool: named("thin_pool", &pool.thin_pool)?,
        if_absent: match creates {
            true => IfAbsent::Create { size_bytes },
            false => IfAbsent::Fail,
        },
    })
}

fn share_server(server: RawShareServer, state_dir: &Path) -> Result<ShareServerConfig, Wrong> {
    let (listen, addresses) = addresses(&server)?;
    let versions = server.versions.as_deref().map(versions_of).transpose()?;
    let (nfs3, versions) = match versions {
        Some((nfs3, minor_versions)) => (nfs3, Some(minor_versions)),
        None => (None, None),
    };
    if let (None, Some(port)) = (nfs3, &server.mount_port) {
        let problem = "is for NFSv3, which is not in share_server.versions";
        return Err(wrong("share_server.mount_port", port, problem));
    }
    let is_knfsd = match &server.driver {
        None => false,
        Some(driver) => match driver.get_ref().as_str() {
            "ganesha" => false,
            "knfsd" => true,
            other => {
                let problem = format!("{other:?} is not a share server; there are \"ganesha\" and \"knfsd\"");
                return Err(wrong("share_server.driver", driver, problem));
            }
        },
    };
    let folder = match &server.state_dir {
        Some(text) => absolute("share_server.state_dir", text)?,
        None => state_dir.join(if is_knfsd { "knfsd" } else { "ganesha" }),
    };
    if is_knfsd {
        if let Some(text) = nfs3 {
            let problem = "NFSv3 is served with driver = \"ganesha\" only";
            return Err(wrong("share_server.versions", text, problem));
        }
        return knfsd(server, KnfsdConfig::new(folder, listen), addresses, versions);
    }
    let problem = "is for driver = \"knfsd\" only";
    if let Some(root) = &server.root {
        return Err(wrong("share_server.root", root, problem));
    }
    if let Some(threads) = &server.threads {
        return Err(wrong("share_server.threads", threads, problem));
    }
    let defaults = GaneshaConfig::new(folder, listen);
    Ok(ShareServerConfig::Ganesha(GaneshaConfig {
        addresses,
        minor_versions: versions.unwrap_or(defaults.minor_versions),
        nfs3: nfs3.is_some().then(|| Nfs3 {
            mount_port: server.mount_port.map_or(DEFAULT_MOUNT_PORT, Spanned::into_inner),
        }),
        ..defaults
    }))
}

fn knfsd(
    server: RawShareServer,
    defaults: KnfsdConfig,
    addresses: Vec<ShareAddress>,
    versions: Option<Vec<u8>>,
) -> Result<ShareServerConfig, Wrong> {
    let root = match &server.root {
        Some(text) => absolute("share_server.root", text)?,
        None => defaults.root,
    };
    let threads = match &server.threads {
        Some(threads) if *threads.get_ref() == 0 => {
            return Err(wrong("share_server.threads", threads, "is at least 1"));
        }
        Some(threads) => *threads.get_ref(),
        None => defaults.threads,
    };
    Ok(ShareServerConfig::Knfsd(KnfsdConfig {
        addresses,
        minor_versions: versions.unwrap_or(defaults.minor_versions),
        root,
        threads,
        ..defaults
    }))
}

/// Returns where a server listens, and what clients are told.
fn addresses(server: &RawShareServer) -> Result<(SocketAddr, Vec<ShareAddress>), Wrong> {
    let Some(text) = &server.listen else {
        let problem = "is missing; name the address that clients mount from, or \"[::]:2049\" for all";
        return Err(missing("share_server.listen", problem));
    };
    let parsed = text.get_ref().parse::<SocketAddr>().ok();
    let parsed = parsed.or_else(|| {
        let ip = text.get_ref().parse().ok()?;
        Some(SocketAddr::new(ip, DEFAULT_NFS_PORT))
    });
    let Some(listen) = parsed.filter(|address| address.port() != 0) else {
        let problem = format!("{:?} is not an IP address, with or without port", text.get_ref());
        return Err(wrong("share_server.listen", text, problem));
    };
    let mut users = ips("share_server.addresses", &server.addresses)?;
    if users.is_empty() {
        if listen.ip().is_unspecified() {
            let problem =
                "listens on every address; say in share_server.addresses which of them clients are told";
            return Err(wrong("share_server.listen", text, problem));
        }
        users.push((listen.ip(), text));
    }
    let preferred = ips("share_server.preferred", &server.preferred)?;
    if let Some((_, text)) = preferred.iter().find(|(ip, _)| !is_among(&users, *ip)) {
        let problem = format!("{:?} is not one of share_server.addresses", text.get_ref());
        return Err(wrong("share_server.preferred", text, problem));
    }
    let admins = ips("share_server.admin_addresses", &server.admin_addresses)?;
    if let Some((_, text)) = admins.iter().find(|(ip, _)| is_among(&users, *ip)) {
        let problem = format!(
            "{:?} is one of share_server.addresses, which everybody is told",
            text.get_ref()
        );
        return Err(wrong("share_server.admin_addresses", text, problem));
    }
    let role_of = |ip: IpAddr| {
        let family = preferred.iter().filter(|(one, _)| one.is_ipv6() == ip.is_ipv6());
        let first = users.iter().find(|(one, _)| one.is_ipv6() == ip.is_ipv6());
        match (family.count(), first) {
            (0, Some((first, _))) if *first == ip => PortalRole::Preferred,
            _ if is_among(&preferred, ip) => PortalRole::Preferred,
            _ => PortalRole::Ordinary,
        }
    };
    let mut addresses = Vec::new();
    addresses.extend(users.iter().map(|(ip, _)| (*ip, role_of(*ip))));
    addresses.extend(admins.iter().map(|(ip, _)| (*ip, PortalRole::AdminOnly)));
    let addresses = addresses.into_iter().map(|(ip, role)| ShareAddress { ip, role });
    Ok((listen, addresses.collect()))
}

/// IP addresses with where they are written.
type Ips<'a> = Vec<(IpAddr, &'a Spanned<String>)>;

fn is_among(ips: &Ips<'_>, ip: IpAddr) -> bool {
    ips.iter().any(|(one, _)| *one == ip)
}

/// Reads a list of different IP addresses.
fn ips<'a>(key: &str, texts: &'a Option<Vec<Spanned<String>>>) -> Result<Ips<'a>, Wrong> {
    let mut ips = Ips::new();
    for text in texts.iter().flatten() {
        let ip = text.get_ref().parse().map_err(|_| {
            let problem = format!("{:?} is not an IP address without port", text.get_ref());
            wrong(key, text, problem)
        })?;
        if is_among(&ips, ip) {
            return Err(wrong(key, text, format!("{:?} is there twice", text.get_ref())));
        }
        ips.push((ip, text));
    }
    Ok(ips)
}

/// Returns where NFSv3 is named, and the minor versions of NFSv4.
type Versions<'a> = (Option<&'a Spanned<String>>, Vec<u8>);

fn versions_of(versions: &[Spanned<String>]) -> Result<Versions<'_>, Wrong> {
    let (mut nfs3, mut minor_versions) = (None, Vec::new());
    for text in versions {
        match text.get_ref().as_str() {
            "3" => nfs3 = Some(text),
            "4.0" => minor_versions.push(0),
            "4.1" => minor_versions.push(1),
            "4.2" => minor_versions.push(2),
            other => {
                let problem =
                    format!("{other:?} is not served; there are \"3\", \"4.0\", \"4.1\" and \"4.2\"");
                return Err(wrong("share_server.versions", text, problem));
            }
        }
    }
    match (nfs3, minor_versions.is_empty()) {
        (None, true) => Err(missing(
            "share_server.versions",
            "is empty; leave it out for 4.1 and 4.2",
        )),
        (Some(text), true) => {
            let problem = "is not served alone; name one of \"4.0\", \"4.1\" and \"4.2\" beside it";
            Err(wrong("share_server.versions", text, problem))
        }
        _ => Ok((nfs3, minor_versions)),
    }
}
