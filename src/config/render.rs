//! The resolved configuration, written the way a configuration file is, for `--check-config`.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;

use quarry_contract::{PortalRole, ShareAddress};

use super::{
    Config, IfAbsent, Listen, LogFormat, PoolDriver, Share, SharePoolConfig, SharePoolDriver,
    ShareServerConfig,
};

pub(super) fn render(config: &Config) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_config(&mut text, config);
    text
}

fn write_config(out: &mut String, config: &Config) -> std::fmt::Result {
    writeln!(out, "[agent]\nstate_dir = {}\n\n[api]", quoted(&config.state_dir))?;
    match &config.listen {
        Listen::Unix { path, allow_uids } => {
            writeln!(
                out,
                "listen = {}\nallow_uids = {allow_uids:?}",
                text(&format!("unix:{}", path.display()))
            )?;
        }
        Listen::Tls {
            address,
            certificate,
            key,
            client_ca,
        } => {
            writeln!(out, "listen = \"tcp:{address}\"")?;
            writeln!(
                out,
                "tls_cert = {}\ntls_key = {}",
                quoted(certificate),
                quoted(key)
            )?;
            writeln!(out, "tls_client_ca = {}", quoted(client_ca))?;
        }
        Listen::Insecure { address } => writeln!(out, "listen = \"tcp:{address}\"\ninsecure = true")?,
    }
    for pool in &config.pools {
        let PoolDriver::Thin {
            path,
            if_absent,
            chunk_bytes,
            page_cache,
            fullness,
            scrub_bytes_per_second,
        } = &pool.driver;
        writeln!(
            out,
            "\n[pool.{}]\ndriver = \"thin\"\npath = {}",
            text(pool.name.as_str()),
            quoted(path)
        )?;
        match if_absent {
            IfAbsent::Fail => writeln!(out, "create = false")?,
            IfAbsent::Create { size_bytes } => writeln!(out, "create = true\nsize = \"{size_bytes}B\"")?,
        }
        writeln!(
            out,
            "chunk = \"{}KiB\"\npage_cache = {page_cache}\nscrub_rate = \"{scrub_bytes_per_second}B\"",
            chunk_bytes >> 10
        )?;
        writeln!(
            out,
            "warn = \"{}\"\nbrake = \"{}\"\ncritical = \"{}\"",
            share(fullness.warn),
            share(fullness.brake),
            share(fullness.critical)
        )?;
        match fullness.wait_seconds {
            0 => writeln!(out, "on_full = \"error\"")?,
            seconds => writeln!(out, "on_full = \"wait {seconds}s\"")?,
        }
    }
    let listen: Vec<String> = config
        .target
        .listen
        .iter()
        .map(|address| format!("\"{address}\""))
        .collect();
    writeln!(
        out,
        "\n[target]\ndriver = \"iscsi\"\nlisten = [{}]",
        listen.join(", ")
    )?;
    if let Some(address) = config.metrics {
        writeln!(out, "\n[metrics]\nlisten = \"{address}\"")?;
    }
    write_shares(out, config)?;
    let format = match config.log.format {
        LogFormat::Auto => "auto",
        LogFormat::Text => "text",
        LogFormat::Json => "json",
    };
    writeln!(
        out,
        "\n[log]\nfilter = {}\nformat = \"{format}\"",
        text(&config.log.filter)
    )
}

fn share(share: Share) -> String {
    match share {
        Share::Bytes(bytes) => format!("{bytes}B"),
        Share::Percent(percent) => format!("{percent}%"),
    }
}

fn write_share_pool(out: &mut String, pool: &SharePoolConfig) -> std::fmt::Result {
    use quarry_images::PoolPlace;

    let name = text(pool.name.as_str());
    let creation = match &pool.driver {
        SharePoolDriver::Images(
            PoolPlace::Folder { path, if_absent } | PoolPlace::File { path, if_absent },
        ) => {
            writeln!(
                out,
                "\n[share_pool.{name}]\ndriver = \"images\"\npath = {}",
                quoted(path)
            )?;
            match if_absent {
                quarry_images::IfAbsent::Fail => None,
                quarry_images::IfAbsent::Create { size_bytes: 0 } => Some(None),
                quarry_images::IfAbsent::Create { size_bytes } => Some(Some(*size_bytes)),
            }
        }
        SharePoolDriver::Lvm(place) => {
            writeln!(
                out,
                "\n[share_pool.{name}]\ndriver = \"lvm\"\nvolume_group = {}\nthin_pool = {}",
                text(&place.volume_group),
                text(&place.thin_pool)
            )?;
            match place.if_absent {
                quarry_lvm::IfAbsent::Fail => None,
                quarry_lvm::IfAbsent::Create { size_bytes } => Some(size_bytes),
            }
        }
    };
    writeln!(out, "mounts = {}", quoted(&pool.mounts))?;
    match creation {
        None => writeln!(out, "create = false"),
        Some(None) => writeln!(out, "create = true"),
        Some(Some(size_bytes)) => writeln!(out, "create = true\nsize = \"{size_bytes}B\""),
    }
}

fn write_shares(out: &mut String, config: &Config) -> std::fmt::Result {
    for pool in &config.share_pools {
        write_share_pool(out, pool)?;
    }
    match &config.share_server {
        None => Ok(()),
        Some(ShareServerConfig::Ganesha(server)) => {
            write_share_server(
                out,
                "ganesha",
                server.listen,
                &server.addresses,
                &server.minor_versions,
                server.nfs3.is_some(),
            )?;
            if let Some(nfs3) = server.nfs3 {
                writeln!(out, "mount_port = {}", nfs3.mount_port)?;
            }
            writeln!(out, "state_dir = {}", quoted(&server.state_dir))
        }
        Some(ShareServerConfig::Knfsd(server)) => {
            write_share_server(
                out,
                "knfsd",
                server.listen,
                &server.addresses,
                &server.minor_versions,
                false,
            )?;
            writeln!(
                out,
                "state_dir = {}\nroot = {}\nthreads = {}",
                quoted(&server.state_dir),
                quoted(&server.root),
                server.threads
            )
        }
    }
}

/// Writes what every server has.
fn write_share_server(
    out: &mut String,
    driver: &str,
    listen: SocketAddr,
    addresses: &[ShareAddress],
    minor_versions: &[u8],
    with_nfs3: bool,
) -> std::fmt::Result {
    let told = |is_told: fn(PortalRole) -> bool| {
        let told = addresses.iter().filter(|address| is_told(address.role));
        let told: Vec<String> = told.map(|address| format!("\"{}\"", address.ip)).collect();
        told.join(", ")
    };
    let nfs3 = with_nfs3.then(|| "\"3\"".to_owned());
    let minor_versions = minor_versions.iter().map(|minor| format!("\"4.{minor}\""));
    let versions: Vec<String> = nfs3.into_iter().chain(minor_versions).collect();
    writeln!(
        out,
        "\n[share_server]\ndriver = \"{driver}\"\nlisten = \"{listen}\"\naddresses = [{}]\npreferred = [{}]\n\
         admin_addresses = [{}]\nversions = [{}]",
        told(|role| role != PortalRole::AdminOnly),
        told(|role| role == PortalRole::Preferred),
        told(|role| role == PortalRole::AdminOnly),
        versions.join(", "),
    )
}

fn quoted(path: &Path) -> String {
    text(&path.display().to_string())
}

fn text(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}
