use quarry_contract::ShareAddress;
use quarry_images::{IfAbsent as ImagesIfAbsent, PoolPlace};
use quarry_lvm::IfAbsent as LvmIfAbsent;

use super::*;

const MINIMAL: &str = r#"
[pool.default]
path = "/var/lib/quarry/default.pool"
[target]
listen = ["10.0.0.1"]
"#;

const SHARES: &str = r#"
[share_pool.file]
path = "/srv/shares.img"
create = true
size = "1TiB"
[share_pool.folder]
path = "/nowhere/shares"
mounts = "/run/shares"
[share_server]
listen = "[::]:2049"
addresses = ["10.0.0.1", "fd00::1"]
versions = ["4.1"]
"#;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(Path::new("quarry.toml"), text)
}

fn refusal(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

#[test]
fn packaged_example_is_understood_and_has_every_default_written_out() {
    let text = include_str!("../../packaging/quarry.toml");
    let config = parse(text).unwrap();
    assert_eq!(config.pools.len(), 1);
    let PoolDriver::Thin { if_absent, .. } = &config.pools[0].driver;
    assert_eq!(
        *if_absent,
        IfAbsent::Create {
            size_bytes: 100 << 30
        }
    );
    let minimal = parse(MINIMAL).unwrap();
    assert_eq!(
        (minimal.state_dir, minimal.listen, minimal.log),
        (config.state_dir, config.listen, config.log)
    );
}

#[test]
fn what_check_config_prints_is_the_same_configuration_again() {
    let tls = r#"
[agent]
state_dir = "/srv/quarry \"x\""
[api]
listen = "tcp:[fd00::1]:7443"
tls_cert = "/c"
tls_key = "/k"
tls_client_ca = "/ca"
[pool.a]
path = "/dev/vg/a"
[pool."b.c"]
path = "/b"
create = true
size = "1.5GiB"
chunk = "1MiB"
page_cache = true
warn = "10GiB"
brake = "5%"
critical = "0"
on_full = "wait 90s"
scrub_rate = "200MiB"
[target]
listen = ["10.0.0.1:3260", "[fd00::1]:3261"]
[metrics]
listen = "[::1]:9469"
[log]
filter = "warn"
format = "json"
"#;
    let shares = format!("{MINIMAL}{SHARES}");
    let knfsd = format!("{shares}driver = \"knfsd\"\nroot = \"/exports\"\nthreads = 3\n");
    for text in [
        include_str!("../../packaging/quarry.toml"),
        MINIMAL,
        tls,
        &shares,
        &knfsd,
    ] {
        let config = parse(text).unwrap();
        assert_eq!(parse(&config.render()).unwrap(), config);
    }
}

#[test]
fn levels_and_waiting_are_read_and_what_is_neither_is_refused() {
    let with = |line: &str| MINIMAL.replace("[target]", &format!("{line}\n[target]"));
    let fullness = |line: &str| {
        let config = parse(&with(line)).unwrap();
        let PoolDriver::Thin { fullness, .. } = config.pools[0].driver;
        fullness
    };
    assert_eq!(fullness(""), Fullness::default());
    assert_eq!(fullness("warn = \"35%\"").warn, Share::Percent(35));
    assert_eq!(fullness("critical = \"2GiB\"").critical, Share::Bytes(2 << 30));
    assert_eq!(fullness("on_full = \"wait 60s\"").wait_seconds, 60);
    assert_eq!(fullness("on_full = \"error\"").wait_seconds, 0);
    for (line, key) in [
        ("warn = \"101%\"", "pool.default.warn"),
        ("brake = \"some\"", "pool.default.brake"),
        ("on_full = \"wait\"", "pool.default.on_full"),
        ("on_full = \"wait 0s\"", "pool.default.on_full"),
        ("on_full = \"wait 2h\"", "pool.default.on_full"),
        ("scrub_rate = \"0\"", "pool.default.scrub_rate"),
    ] {
        let refusal = refusal(&with(line));
        assert!(refusal.contains(&format!("quarry.toml:4: {key}: ")), "{refusal}");
    }
}

fn roles(addresses: &[ShareAddress]) -> Vec<String> {
    let show = |address: &ShareAddress| format!("{} {:?}", address.ip, address.role);
    addresses.iter().map(show).collect()
}

#[test]
fn shares_are_resolved_and_what_cannot_work_is_refused() {
    let config = parse(&format!("{MINIMAL}{SHARES}")).unwrap();
    let [file, folder] = &config.share_pools[..] else {
        panic!("two pools")
    };
    let place = |pool: &SharePoolConfig| match &pool.driver {
        SharePoolDriver::Images(place) => place.clone(),
        SharePoolDriver::Lvm(place) => panic!("{place:?}"),
    };
    assert!(matches!(place(file), PoolPlace::File { .. }));
    assert_eq!(file.mounts, Path::new("/var/lib/quarry/mounts/file"));
    assert!(matches!(place(folder), PoolPlace::Folder { .. }));
    // A pool that was in use is never made anew.
    assert!(matches!(
        place(file).existing(),
        PoolPlace::File {
            if_absent: ImagesIfAbsent::Fail,
            ..
        }
    ));
    let lvm =
        "[share_pool.c]\ndriver = \"lvm\"\nvolume_group = \"vg-0\"\nthin_pool = \"thin\"\ncreate = true\n";
    let config = parse(&format!("{MINIMAL}{lvm}{SHARES}")).unwrap();
    let SharePoolDriver::Lvm(place) = &config.share_pools[0].driver else {
        panic!("{:?}", config.share_pools[0])
    };
    assert_eq!(place.path(), Path::new("/dev/vg-0/thin"));
    assert_eq!(place.if_absent, LvmIfAbsent::Create { size_bytes: None });
    let rendered = config.render();
    assert!(rendered.contains("thin_pool = \"thin\"\nmounts = "), "{rendered}");
    let config = parse(&format!("{MINIMAL}{SHARES}")).unwrap();
    let Some(ShareServerConfig::Ganesha(server)) = &config.share_server else {
        panic!("a server")
    };
    assert_eq!(server.state_dir, Path::new("/var/lib/quarry/ganesha"));
    assert_eq!(server.minor_versions, [1]);
    assert_eq!(server.nfs3, None);
    let with_nfs3 = SHARES.replace("versions = [", "versions = [\"3\", ");
    let config = parse(&format!("{MINIMAL}{with_nfs3}")).unwrap();
    assert_eq!(parse(&config.render()).unwrap(), config);
    let Some(ShareServerConfig::Ganesha(server)) = &config.share_server else {
        panic!("a server")
    };
    assert_eq!(
        (server.nfs3.unwrap().mount_port, &server.minor_versions[..]),
        (20048, &[1][..])
    );
    let config = parse(&format!("{MINIMAL}{SHARES}driver = \"knfsd\"\n")).unwrap();
    let Some(ShareServerConfig::Knfsd(server)) = &config.share_server else {
        panic!("the kernel's server")
    };
    assert_eq!(server.state_dir, Path::new("/var/lib/quarry/knfsd"));
    assert_eq!(server.root, Path::new("/srv/quarry"));
    assert_eq!(server.minor_versions, [1]);
    assert_eq!(
        roles(&server.addresses),
        ["10.0.0.1 Preferred", "fd00::1 Preferred"]
    );
    let many = SHARES.replace(
        "addresses = [\"10.0.0.1\", \"fd00::1\"]",
        "addresses = [\"10.0.0.1\", \"10.0.0.2\", \"fd00::1\"]\npreferred = [\"10.0.0.2\"]\n\
         admin_addresses = [\"10.9.0.1\"]",
    );
    let config = parse(&format!("{MINIMAL}{many}")).unwrap();
    assert_eq!(parse(&config.render()).unwrap(), config);
    let Some(ShareServerConfig::Ganesha(server)) = &config.share_server else {
        panic!("a server")
    };
    let expected = [
        "10.0.0.1 Ordinary",
        "10.0.0.2 Preferred",
        "fd00::1 Preferred",
        "10.9.0.1 AdminOnly",
    ];
    assert_eq!(roles(&server.addresses), expected);

    let pool = "[share_pool.a]\npath = \"/s\"\n";
    for (text, at, remedy) in [
        (pool.to_owned(), "share_server", "add a section [share_server]"),
        (
            "[share_server]\nlisten = \"10.0.0.1\"\n".into(),
            "share_pool",
            "like [share_pool.default]",
        ),
        (
            format!("{pool}[share_server]\n"),
            "share_server.listen",
            "is missing",
        ),
        (
            format!("{pool}[share_server]\nlisten = \"host\"\n"),
            "9: share_server.listen",
            "not an IP address",
        ),
        (
            format!("{pool}[share_server]\nlisten = \"[::]:2049\"\n"),
            "9: share_server.listen",
            "share_server.addresses",
        ),
        (
            format!("{pool}[share_server]\nlisten = \"10.0.0.1\"\npreferred = [\"10.0.0.2\"]\n"),
            "10: share_server.preferred",
            "not one of share_server.addresses",
        ),
        (
            format!("{pool}[share_server]\nlisten = \"10.0.0.1\"\nadmin_addresses = [\"10.0.0.1\"]\n"),
            "10: share_server.admin_addresses",
            "which everybody is told",
        ),
        (
            format!("{pool}[share_server]\nlisten = \"10.0.0.1\"\naddresses = [\"::1\", \"0::1\"]\n"),
            "10: share_server.addresses",
            "is there twice",
        ),
        (
            format!("{pool}[share_server]\nlisten = \"10.0.0.1\"\nversions = [\"3\"]\n"),
            "10: share_server.versions",
            "is not served alone",
        ),
        (
            format!("{pool}[share_server]\nlisten = \"10.0.0.1\"\nversions = [\"2\", \"4.1\"]\n"),
            "10: share_server.versions",
            "is not served; there are",
        ),
        (
            format!(
                "{pool}[share_server]\nlisten = \"10.0.0.1\"\ndriver = \"knfsd\"\nversions = [\"3\", \"4.1\"]\n"
            ),
            "11: share_server.versions",
            "with driver = \"ganesha\" only",
        ),
        (
            format!("{pool}[share_server]\nlisten = \"10.0.0.1\"\nmount_port = 20048\n"),
            "10: share_server.mount_port",
            "not in share_server.versions",
        ),
        (
            format!("{pool}[share_server]\nlisten = \"10.0.0.1\"\ndriver = \"samba\"\n"),
            "10: share_server.driver",
            "there are \"ganesha\" and \"knfsd\"",
        ),
        (
            format!("{pool}[share_server]\nlisten = \"10.0.0.1\"\nroot = \"/exports\"\n"),
            "10: share_server.root",
            "\"knfsd\" only",
        ),
        (
            format!("{pool}[share_server]\nlisten = \"10.0.0.1\"\ndriver = \"knfsd\"\nthreads = 0\n"),
            "11: share_server.threads",
            "at least 1",
        ),
        (
            format!("{pool}size = \"1GiB\"\n"),
            "8: share_pool.a.size",
            "create = true only",
        ),
        (
            format!("{pool}driver = \"zfs\"\n"),
            "8: share_pool.a.driver",
            "there are \"images\" and \"lvm\"",
        ),
        (
            format!("{pool}thin_pool = \"thin\"\n"),
            "8: share_pool.a.thin_pool",
            "\"lvm\" only",
        ),
        (
            format!("{pool}driver = \"lvm\"\nvolume_group = \"vg\"\nthin_pool = \"thin\"\n"),
            "7: share_pool.a.path",
            "\"images\" only",
        ),
        (
            "[share_pool.a]\ndriver = \"lvm\"\nvolume_group = \"vg\"\n".into(),
            "share_pool.a.thin_pool",
            "is missing",
        ),
        (
            "[share_pool.a]\ndriver = \"lvm\"\nvolume_group = \"-vg\"\nthin_pool = \"t\"\n".into(),
            "8: share_pool.a.volume_group",
            "no name that LVM takes",
        ),
        (
            "[share_pool.a]\npath = \"s\"\n".into(),
            "7: share_pool.a.path",
            "begin it with /",
        ),
        (
            format!("{pool}mount = \"/m\"\n"),
            "8: share_pool.a.mount",
            "did you mean \"mounts\"",
        ),
    ] {
        let said = refusal(&format!("{MINIMAL}{text}"));
        assert!(said.contains(at) && said.contains(remedy), "{text}: {said}");
    }
}

#[test]
fn unknown_keys_are_refused_with_their_line_and_what_was_meant() {
    let misspelt = MINIMAL.replace("path =", "paht =");
    assert_eq!(
        refusal(&misspelt),
        "quarry.toml:3: pool.default.paht: there is no such setting; did you mean \"path\"?"
    );
    let section = format!("{MINIMAL}\n[tarnget]\n");
    assert_eq!(
        refusal(&section),
        "quarry.toml:7: tarnget: there is no such setting; did you mean \"target\"?"
    );
    let strange = format!("{MINIMAL}\n[log]\nrotate_daily = 1\n");
    assert_eq!(
        refusal(&strange),
        "quarry.toml:8: log.rotate_daily: there is no such setting; there are filter, format"
    );
}

#[test]
fn wrong_values_are_refused_with_line_key_and_remedy() {
    let cases = [
        ("[target", "1:", "unclosed"),
        (
            "[pool.default]\npath = 7\n[target]\nlisten = [\"10.0.0.1\"]\n",
            "2:",
            "invalid type",
        ),
        (
            "[target]\nlisten = [\"10.0.0.1\"]\n",
            "pool",
            "add a section like [pool.default]",
        ),
        (
            "[pool.default]\npath = \"/p\"\n",
            "target",
            "add a section [target]",
        ),
        (
            "[pool.default]\n[target]\nlisten=[\"::1\"]\n",
            "1: pool.default.path",
            "is missing",
        ),
        (
            "[pool.default]\npath = \"p\"\n",
            "2: pool.default.path",
            "begin it with /",
        ),
        ("[pool.\"a b\"]\npath = \"/p\"\n", "1: pool", "letters, digits"),
        (
            "[pool.a]\npath = \"/p\"\ndriver = \"zfs\"\n",
            "3: pool.a.driver",
            "there is \"thin\"",
        ),
        (
            "[metrics]\nlisten = \"9469\"\n[pool.a]\npath = \"/p\"\n[target]\nlisten = [\"10.0.0.1\"]\n",
            "2: metrics.listen",
            "IP address with port",
        ),
        (
            "[pool.a]\npath = \"/p\"\ncreate = true\n",
            "1: pool.a.size",
            "like \"100GiB\"",
        ),
        (
            "[pool.a]\npath = \"/p\"\nsize = \"1GiB\"\n",
            "3: pool.a.size",
            "create = true only",
        ),
        (
            "[pool.a]\npath = \"/p\"\ncreate = true\nsize = \"1GB\"\n",
            "4: pool.a.size",
            "two ways",
        ),
        (
            "[pool.a]\npath = \"/p\"\ncreate = true\nsize = \"0\"\n",
            "4: pool.a.size",
            "is zero",
        ),
        (
            "[pool.a]\npath = \"/p\"\nchunk = \"48KiB\"\n",
            "3: pool.a.chunk",
            "power of two",
        ),
        (
            "[pool.a]\npath = \"/p\"\nchunk = \"4MiB\"\n",
            "3: pool.a.chunk",
            "power of two",
        ),
    ];
    for (text, place, remedy) in cases {
        let message = refusal(text);
        let at = format!(
            "quarry.toml:{}{place}",
            if place.starts_with(char::is_numeric) {
                ""
            } else {
                " "
            }
        );
        assert!(message.starts_with(&at), "{message:?} does not begin with {at:?}");
        assert!(message.contains(remedy), "{message:?} does not say {remedy:?}");
    }
}

#[test]
fn addresses_are_checked_for_safety() {
    let api = |lines: &str| refusal(&format!("[api]\n{lines}\n{MINIMAL}"));
    for (lines, remedy) in [
        (
            "listen = \"quarry.sock\"",
            "\"unix:/path\" or \"tcp:ADDRESS:PORT\"",
        ),
        ("listen = \"unix:quarry.sock\"", "begin it with /"),
        ("listen = \"tcp:localhost:1\"", "IP address with port"),
        (
            "listen = \"tcp:10.0.0.1:7443\"",
            "TCP needs tls_cert, tls_key and tls_client_ca",
        ),
        ("listen = \"tcp:10.0.0.1:7443\"\ntls_cert = \"/c\"", "all three"),
        (
            "listen = \"tcp:10.0.0.1:7443\"\ninsecure = true",
            "loopback addresses only",
        ),
        (
            "listen = \"tcp:127.0.0.1:7443\"\ninsecure = true\ntls_cert = \"/c\"",
            "choose one",
        ),
        (
            "listen = \"tcp:127.0.0.1:7443\"\ninsecure = true\nallow_uids = [1]",
            "unix socket only",
        ),
        ("tls_cert = \"/c\"", "remove them"),
    ] {
        let message = api(lines);
        assert!(message.contains(remedy), "{message:?} does not say {remedy:?}");
    }
    let open = parse(&format!(
        "[api]\nlisten = \"tcp:127.0.0.1:7440\"\ninsecure = true\n{MINIMAL}"
    ))
    .unwrap();
    assert_eq!(
        open.listen,
        Listen::Insecure {
            address: "127.0.0.1:7440".parse().unwrap()
        }
    );
    assert!(refusal(&MINIMAL.replace("10.0.0.1", "0.0.0.0")).contains("name each address"));
    let target = parse(MINIMAL).unwrap().target;
    assert_eq!(target.listen, ["10.0.0.1:3260".parse().unwrap()]);
}

#[test]
fn dev_mode_keeps_everything_in_its_folder_and_remembers_the_port() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("new");
    let config = Config::dev(&folder, Some(1 << 30)).unwrap();
    assert_eq!(config.target.listen, ["127.0.0.1:0".parse().unwrap()]);
    assert!(config.state_dir.ends_with("new"));
    std::fs::write(config.target.port_file.unwrap(), "4711\n").unwrap();
    let again = Config::dev(&folder, None).unwrap();
    assert_eq!(again.target.listen, ["127.0.0.1:4711".parse().unwrap()]);

    std::fs::write(folder.join("iscsi-port"), "many").unwrap();
    let message = Config::dev(&folder, None).unwrap_err().to_string();
    assert!(message.contains("remove it to have one chosen"), "{message}");
    let long = dir.path().join("x".repeat(120));
    assert!(
        Config::dev(&long, None)
            .unwrap_err()
            .to_string()
            .contains("choose a shorter one")
    );
}
