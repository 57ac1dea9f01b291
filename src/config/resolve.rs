//! From what is written to what is meant: values checked, defaults filled in.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use quarry_contract::PoolName;
use toml::Spanned;

use super::raw::{RawApi, RawConfig, RawLog, RawMetrics, RawPool, RawTarget, Wrong};
use super::{
    Config, Fullness, IfAbsent, Listen, LogConfig, LogFormat, PoolConfig, PoolDriver, Share, TargetConfig,
};
use crate::size::parse_size;

mod shares;

const DEFAULT_STATE_DIR: &str = "/var/lib/quarry";
pub(super) const DEFAULT_SOCKET: &str = "/run/quarry/quarry.sock";
pub(super) const DEFAULT_CHUNK_BYTES: u32 = 64 << 10;
/// How much a scrub reads in a second unless the configuration says so, in bytes.
pub(super) const DEFAULT_SCRUB_RATE: u64 = 64 << 20;
const MIN_CHUNK_BYTES: u32 = 16 << 10;
const MAX_CHUNK_BYTES: u32 = 1 << 20;
const DEFAULT_ISCSI_PORT: u16 = 3260;
/// The longest path of a unix socket, in bytes (unix(7): sun_path, less the terminating zero).
pub(super) const MAX_SOCKET_PATH_BYTES: usize = 107;

fn wrong<T>(key: &str, at: &Spanned<T>, problem: impl Into<String>) -> Wrong {
    Wrong {
        offset: Some(at.span().start),
        key: Some(key.to_owned()),
        problem: problem.into(),
    }
}

fn missing(key: &str, problem: &str) -> Wrong {
    Wrong {
        offset: None,
        key: Some(key.to_owned()),
        problem: problem.to_owned(),
    }
}

pub(super) fn resolve(raw: RawConfig) -> Result<Config, Wrong> {
    let state_dir = match raw.agent.as_ref().and_then(|agent| agent.state_dir.as_ref()) {
        Some(text) => absolute("agent.state_dir", text)?,
        None => PathBuf::from(DEFAULT_STATE_DIR),
    };
    let listen = listen(raw.api.unwrap_or_default())?;
    if raw.pool.is_empty() {
        return Err(missing(
            "pool",
            "there is no pool; add a section like [pool.default]",
        ));
    }
    let mut pools = Vec::new();
    for (name, pool) in raw.pool {
        pools.push(pool_config(&name, pool)?);
    }
    let (share_pools, share_server) = shares::resolve(raw.share_pool, raw.share_server, &state_dir)?;
    Ok(Config {
        state_dir,
        listen,
        pools,
        target: target(raw.target)?,
        metrics: metrics(raw.metrics)?,
        share_pools,
        share_server,
        log: log(raw.log)?,
    })
}

fn absolute(key: &str, text: &Spanned<String>) -> Result<PathBuf, Wrong> {
    let path = Path::new(text.get_ref());
    if path.is_absolute() {
        return Ok(path.to_owned());
    }
    Err(wrong(
        key,
        text,
        format!("{:?} is not an absolute path; begin it with /", text.get_ref()),
    ))
}

fn listen(api: RawApi) -> Result<Listen, Wrong> {
    let default = Spanned::new(0..0, format!("unix:{DEFAULT_SOCKET}"));
    let text = api.listen.as_ref().unwrap_or(&default);
    if let Some(path) = text.get_ref().strip_prefix("unix:") {
        let path = absolute("api.listen", &Spanned::new(text.span(), path.to_owned()))?;
        if path.as_os_str().len() > MAX_SOCKET_PATH_BYTES {
            let problem = format!("the path of a unix socket has at most {MAX_SOCKET_PATH_BYTES} bytes");
            return Err(wrong("api.listen", text, problem));
        }
        let only_tcp = [&api.tls_cert, &api.tls_key, &api.tls_client_ca];
        if let Some(setting) = only_tcp.into_iter().flatten().next() {
            return Err(wrong(
                "api",
                setting,
                "certificates are for listen = \"tcp:…\" only; remove them",
            ));
        }
        let allow_uids = api.allow_uids.map(Spanned::into_inner).unwrap_or_default();
        return Ok(Listen::Unix { path, allow_uids });
    }
    let Some(address) = text.get_ref().strip_prefix("tcp:") else {
        let problem = format!(
            "{:?} is not an address; write \"unix:/path\" or \"tcp:ADDRESS:PORT\"",
            text.get_ref()
        );
        return Err(wrong("api.listen", text, problem));
    };
    let address: SocketAddr = address.parse().map_err(|_| {
        let problem =
            format!("{address:?} is not an IP address with port, like 10.0.0.1:7443 or [fd00::1]:7443");
        wrong("api.listen", text, problem)
    })?;
    if let Some(uids) = &api.allow_uids {
        return Err(wrong(
            "api.allow_uids",
            uids,
            "user ids are known on a unix socket only; remove it",
        ));
    }
    match (api.tls_cert, api.tls_key, api.tls_client_ca, api.insecure) {
        (Some(certificate), Some(key), Some(client_ca), None) => Ok(Listen::Tls {
            address,
            certificate: absolute("api.tls_cert", &certificate)?,
            key: absolute("api.tls_key", &key)?,
            client_ca: absolute("api.tls_client_ca", &client_ca)?,
        }),
        (None, None, None, Some(insecure)) if *insecure.get_ref() => {
            if address.ip().is_loopback() {
                return Ok(Listen::Insecure { address });
            }
            let problem = "TCP without certificates is for loopback addresses only; set tls_cert, tls_key and \
                           tls_client_ca";
            Err(wrong("api.insecure", &insecure, problem))
        }
        (_, _, _, Some(insecure)) if *insecure.get_ref() => Err(wrong(
            "api.insecure",
            &insecure,
            "is set together with certificates; choose one",
        )),
        _ => {
            let problem = "TCP needs tls_cert, tls_key and tls_client_ca, all three (or insecure = true on \
                           loopback)";
            Err(wrong("api.listen", text, problem))
        }
    }
}

fn pool_config(name: &Spanned<String>, pool: RawPool) -> Result<PoolConfig, Wrong> {
    let key = |setting: &str| format!("pool.{}.{setting}", name.get_ref());
    let parsed = PoolName::parse(name.get_ref()).map_err(|problem| wrong("pool", name, problem))?;
    if let Some(driver) = pool.driver.as_ref().filter(|driver| driver.get_ref() != "thin") {
        let problem = format!(
            "{:?} is not a driver of pools; there is \"thin\"",
            driver.get_ref()
        );
        return Err(wrong(&key("driver"), driver, problem));
    }
    let Some(path) = pool.path else {
        let problem = "is missing; name the pool's file or block device";
        return Err(wrong(&key("path"), name, problem));
    };
    let path = absolute(&key("path"), &path)?;
    let creates = pool.create.as_ref().is_some_and(|create| *create.get_ref());
    let if_absent = match (creates, &pool.size) {
        (false, None) => IfAbsent::Fail,
        (false, Some(size)) => {
            let problem = "is for create = true only; an existing pool knows its size";
            return Err(wrong(&key("size"), size, problem));
        }
        (true, None) => {
            let problem = "is missing; create = true needs the size of the new pool, like \"100GiB\"";
            return Err(wrong(&key("size"), name, problem));
        }
        (true, Some(size)) => IfAbsent::Create {
            size_bytes: size_of(&key("size"), size)?,
        },
    };
    let chunk_bytes = match &pool.chunk {
        None => DEFAULT_CHUNK_BYTES,
        Some(text) => {
            let bytes = size_of(&key("chunk"), text)?;
            let fits =
                |bytes: &u32| bytes.is_power_of_two() && (MIN_CHUNK_BYTES..=MAX_CHUNK_BYTES).contains(bytes);
            u32::try_from(bytes).ok().filter(fits).ok_or_else(|| {
                wrong(
                    &key("chunk"),
                    text,
                    "is not a power of two from \"16KiB\" to \"1MiB\"",
                )
            })?
        }
    };
    let defaults = Fullness::default();
    let share = |setting: &str, text: &Option<Spanned<String>>, default: Share| match text {
        None => Ok(default),
        Some(text) => share_of(&key(setting), text),
    };
    let fullness = Fullness {
        warn: share("warn", &pool.warn, defaults.warn)?,
        brake: share("brake", &pool.brake, defaults.brake)?,
        critical: share("critical", &pool.critical, defaults.critical)?,
        wait_seconds: match &pool.on_full {
            None => defaults.wait_seconds,
            Some(text) => wait_seconds(&key("on_full"), text)?,
        },
    };
    let scrub_bytes_per_second = match &pool.scrub_rate {
        None => DEFAULT_SCRUB_RATE,
        Some(text) => size_of(&key("scrub_rate"), text)?,
    };
    Ok(PoolConfig {
        name: parsed,
        driver: PoolDriver::Thin {
            path,
            if_absent,
            chunk_bytes,
            page_cache: pool.page_cache.is_some_and(Spanned::into_inner),
            fullness,
            scrub_bytes_per_second,
        },
    })
}

/// Reads a part of a pool: "5%", or a size.
fn share_of(key: &str, text: &Spanned<String>) -> Result<Share, Wrong> {
    let problem = match text.get_ref().strip_suffix('%') {
        Some(number) => match number.trim().parse() {
            Ok(percent) if percent <= 100 => return Ok(Share::Percent(percent)),
            _ => "is not a percentage; write \"5%\", or a size like \"20GiB\"".to_owned(),
        },
        None => match parse_size(text.get_ref()) {
            Ok(bytes) => return Ok(Share::Bytes(bytes)),
            Err(problem) => problem,
        },
    };
    Err(wrong(key, text, problem))
}

/// Reads what becomes of a write that finds no space: "error", or "wait 60s".
fn wait_seconds(key: &str, text: &Spanned<String>) -> Result<u32, Wrong> {
    if text.get_ref() == "error" {
        return Ok(0);
    }
    let seconds = text
        .get_ref()
        .strip_prefix("wait ")
        .and_then(|time| time.strip_suffix('s'))
        .and_then(|seconds| seconds.parse().ok());
    match seconds {
        Some(seconds @ 1..=3600) => Ok(seconds),
        _ => {
            let problem = "is neither \"error\" nor \"wait 60s\" (1s to 3600s)";
            Err(wrong(key, text, problem))
        }
    }
}

fn size_of(key: &str, text: &Spanned<String>) -> Result<u64, Wrong> {
    match parse_size(text.get_ref()) {
        Ok(0) => Err(wrong(key, text, "is zero; give a size like \"100GiB\"")),
        Ok(bytes) => Ok(bytes),
        Err(problem) => Err(wrong(key, text, problem)),
    }
}

fn target(target: Option<RawTarget>) -> Result<TargetConfig, Wrong> {
    let Some(target) = target else {
        let problem = "there is no target; add a section [target] with listen = [\"ADDRESS:3260\"]";
        return Err(missing("target", problem));
    };
    if let Some(driver) = target
        .driver
        .as_ref()
        .filter(|driver| driver.get_ref() != "iscsi")
    {
        let problem = format!(
            "{:?} is not a driver of targets; there is \"iscsi\"",
            driver.get_ref()
        );
        return Err(wrong("target.driver", driver, problem));
    }
    let mut listen = Vec::new();
    for text in target.listen.unwrap_or_default() {
        let address = text.get_ref().parse::<SocketAddr>().ok().or_else(|| {
            text.get_ref()
                .parse()
                .ok()
                .map(|ip| SocketAddr::new(ip, DEFAULT_ISCSI_PORT))
        });
        let Some(address) = address else {
            let problem = format!("{:?} is not an IP address, with or without port", text.get_ref());
            return Err(wrong("target.listen", &text, problem));
        };
        if address.ip().is_unspecified() {
            let problem = "hosts are told this address; name each address they can reach instead of all";
            return Err(wrong("target.listen", &text, problem));
        }
        listen.push(address);
    }
    if listen.is_empty() {
        return Err(missing(
            "target.listen",
            "is missing; name the addresses that hosts connect to",
        ));
    }
    Ok(TargetConfig {
        listen,
        port_file: None,
    })
}

fn metrics(metrics: Option<RawMetrics>) -> Result<Option<SocketAddr>, Wrong> {
    let Some(text) = metrics.and_then(|metrics| metrics.listen) else {
        return Ok(None);
    };
    let Ok(address) = text.get_ref().parse() else {
        let problem = format!(
            "{:?} is not an IP address with port, like 127.0.0.1:9469",
            text.get_ref()
        );
        return Err(wrong("metrics.listen", &text, problem));
    };
    Ok(Some(address))
}

fn log(log: Option<RawLog>) -> Result<LogConfig, Wrong> {
    let RawLog { filter, format } = log.unwrap_or(RawLog {
        filter: None,
        format: None,
    });
    if let Some(text) = &filter
        && let Err(error) = tracing_subscriber::EnvFilter::try_new(text.get_ref())
    {
        return Err(wrong(
            "log.filter",
            text,
            format!("{error}; write \"info\" or \"info,quarry::api=debug\""),
        ));
    }
    let format = match format {
        None => LogFormat::Auto,
        Some(text) => match text.get_ref().as_str() {
            "auto" => LogFormat::Auto,
            "text" => LogFormat::Text,
            "json" => LogFormat::Json,
            other => {
                let problem = format!("{other:?} is not a format; there are \"auto\", \"text\" and \"json\"");
                return Err(wrong("log.format", &text, problem));
            }
        },
    };
    let filter = filter.map_or_else(|| "info".to_owned(), Spanned::into_inner);
    Ok(LogConfig { filter, format })
}
