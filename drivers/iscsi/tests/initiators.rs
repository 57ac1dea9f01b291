//! Initiators that nobody here wrote: QEMU's block driver and libiscsi's tools.
//!
//! They come with the Debian packages qemu-utils, qemu-block-extra and libiscsi-bin. A test whose program is
//! missing fails and says which package has it: it must not pass for having tested nothing.

mod rig;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::num::NonZeroU64;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use quarry_contract::conformance::block_on;
use quarry_contract::{Access, Grant, IoError, IoLimits, Rate, RateLimits, Target};
use rig::{Rig, grant};

/// The names that libiscsi's programs and QEMU use when not told another.
const QEMU: &str = "iqn.2008-11.org.linux-kvm";
const SUITE: &str = "iqn.2007-10.com.github:sahlberg:libiscsi:iscsi-test";
const SUITE_SECOND: &str = "iqn.2007-10.com.github:sahlberg:libiscsi:iscsi-test-2";
const TOOL: &str = "iqn.2026-11.io.quarry.test:tool";

/// How long one run of a program may take.
const RUN_DEADLINE: Duration = Duration::from_secs(120);

fn rig(size_bytes: u64) -> Rig {
    let names = [QEMU, SUITE, SUITE_SECOND, TOOL];
    Rig::with(
        size_bytes,
        |_| {},
        &names.map(|name| grant(name, Access::ReadWrite)),
    )
}

/// Runs a program to its end.
fn run(program: &str, package: &str, arguments: &[&str]) -> Output {
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let child = match child {
        Ok(child) => child,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            panic!("{program} is not installed: this test needs the Debian package {package}")
        }
        Err(error) => panic!("starting {program}: {error}"),
    };
    let pid = child.id();
    let (sender, receiver) = std::sync::mpsc::channel();
    let waiter = thread::spawn(move || sender.send(child.wait_with_output()));
    let output = receiver.recv_timeout(RUN_DEADLINE).unwrap_or_else(|_| {
        let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
        panic!("{program} {arguments:?} did not end within {RUN_DEADLINE:?}")
    });
    let _ = waiter.join();
    output.expect("the program's output")
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[track_caller]
fn succeed(program: &str, package: &str, arguments: &[&str]) -> String {
    let output = run(program, package, arguments);
    assert!(
        output.status.success(),
        "{program} {arguments:?} failed:\n{}",
        text(&output)
    );
    text(&output)
}

fn qemu_io(url: &str, commands: &[&str]) -> String {
    let mut arguments = vec!["-f", "raw", url];
    for command in commands {
        arguments.extend(["-c", command]);
    }
    let said = succeed("qemu-io", "qemu-utils and qemu-block-extra", &arguments);
    assert!(!said.contains("failed"), "{said}");
    said
}

#[test]
fn qemu_copies_an_image_in_and_out_unchanged() {
    let rig = rig(48 << 20);
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (source, back) = (path("source"), path("back"));
    // Half noise, half holes, in runs of odd lengths.
    let mut state = 1u64;
    let mut image = vec![0u8; 48 << 20];
    for (number, run) in image.chunks_mut(77_777).enumerate() {
        if number % 2 == 0 {
            run.fill_with(|| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 56) as u8
            });
        }
    }
    fs::write(&source, &image).unwrap();
    let url = rig.url();
    let package = "qemu-utils and qemu-block-extra";
    let convert = ["convert", "-n", "-f", "raw", "-O", "raw"];
    succeed("qemu-img", package, &[&convert[..], &[&source, &url]].concat());
    let same = succeed(
        "qemu-img",
        package,
        &["compare", "-f", "raw", "-F", "raw", &source, &url],
    );
    assert!(same.contains("Images are identical"), "{same}");
    assert!(!same.contains("SENSE KEY"), "QEMU was refused a command: {same}");
    succeed(
        "qemu-img",
        package,
        &["convert", "-f", "raw", "-O", "raw", &url, &back],
    );
    assert!(fs::read(&back).unwrap() == image);
}

#[test]
fn qemu_reads_what_it_wrote_discarded_and_zeroed() {
    let rig = rig(32 << 20);
    let url = rig.url();
    qemu_io(
        &url,
        &[
            "write -P 0xab 0 4M",
            "write -P 0xcd 1536 512",
            "aio_write -P 0x11 8M 3M",
            "aio_write -P 0x22 12M 64k",
            "aio_flush",
            "flush",
            "discard 1M 1M",
            "write -z 2M 64k",
            "write -z -u 3M 64k",
            "write -f -P 0x77 5M 4k",
        ],
    );
    let said = qemu_io(
        &url,
        &[
            "read -P 0xab 0 1536",
            "read -P 0xcd 1536 512",
            "read -P 0 1M 1M",
            "read -P 0 2M 64k",
            "read -P 0 3M 64k",
            "read -P 0x77 5M 4k",
            "read -P 0x11 8M 3M",
            "read -P 0x22 12M 64k",
            "read -P 0 16M 16M",
        ],
    );
    assert!(!said.contains("Pattern verification"), "{said}");
    assert!(rig.device.mapped_bytes() < 10 << 20, "discarded space came back");
}

/// Reads 64 blocks with libiscsi itself, which none of its tools lets one see: prints the status, the residual, and the
/// sense data in hexadecimal.
const READ_64: &str = r#"
import ctypes, sys
class Sense(ctypes.Structure):
    _fields_ = [("error_type", ctypes.c_ubyte), ("key", ctypes.c_int), ("ascq", ctypes.c_int), ("flags", ctypes.c_ubyte),
                ("bit_pointer", ctypes.c_ubyte), ("field_pointer", ctypes.c_uint16)]
class Task(ctypes.Structure):
    _fields_ = [("status", ctypes.c_int), ("cdb_size", ctypes.c_int), ("direction", ctypes.c_int),
                ("expected", ctypes.c_int), ("cdb", ctypes.c_ubyte * 16), ("residual_status", ctypes.c_int),
                ("residual", ctypes.c_size_t), ("sense", Sense), ("bytes", ctypes.c_int),
                ("data", ctypes.POINTER(ctypes.c_ubyte))]
initiator, user, secret, portal, target, lun = sys.argv[1:]
lib = ctypes.CDLL("libiscsi.so.7")
lib.iscsi_create_context.restype = ctypes.c_void_p
lib.iscsi_read16_sync.restype = ctypes.POINTER(Task)
context = ctypes.c_void_p(lib.iscsi_create_context(initiator.encode()))
lib.iscsi_set_session_type(context, 2)
lib.iscsi_set_targetname(context, target.encode())
lib.iscsi_set_initiator_username_pwd(context, user.encode(), secret.encode())
if lib.iscsi_full_connect_sync(context, portal.encode(), int(lun)):
    sys.exit("no session")
task = lib.iscsi_read16_sync(context, int(lun), ctypes.c_uint64(100), 64 * 512, 512, 0, 0, 0, 0, 0).contents
print(task.status, task.residual, bytes(task.data[2:task.bytes]).hex())
"#;

#[test]
fn libiscsi_is_told_which_block_is_bad() {
    let rig = rig(32 << 20);
    let (address, lun) = (rig.address().to_string(), rig.target.address_of(rig.volume).lun);
    let read = || {
        let arguments = [
            TOOL,
            rig::USER,
            rig::SECRET,
            &address,
            &rig.name(),
            &lun.to_string(),
        ];
        succeed(
            "python3",
            "python3 and libiscsi7",
            &[&["-c", READ_64], &arguments[..]].concat(),
        )
    };
    rig.device.fail_next(IoError::Corrupt {
        offset: 133 * 512,
        detail: "a test".to_owned(),
    });
    assert_eq!(read().trim(), "2 32768 f00003000000850a00000000110000000000");
    rig.device.fail_next(IoError::Medium {
        detail: "nobody knows where".to_owned(),
    });
    assert_eq!(read().trim(), "2 32768 700003000000000a00000000110000000000");
}

#[test]
fn libiscsi_lists_inquires_and_measures() {
    let rig = rig(32 << 20);
    let url = rig.url();
    let listed = succeed(
        "iscsi-ls",
        "libiscsi-bin",
        &[
            "-i",
            TOOL,
            &format!("iscsi://{}%{}@{}", rig::USER, rig::SECRET, rig.address()),
        ],
    );
    assert!(listed.contains(&rig.name()), "{listed}");
    let serial = succeed(
        "iscsi-inq",
        "libiscsi-bin",
        &["-i", TOOL, "-e", "1", "-c", "128", &url],
    );
    assert!(serial.contains(&rig.volume.to_string()), "{serial}");
    let capacity = succeed("iscsi-readcapacity16", "libiscsi-bin", &["-i", TOOL, &url]);
    assert!(
        capacity.contains("33554432") || capacity.contains("65535"),
        "{capacity}"
    );
    let stranger = run(
        "iscsi-inq",
        "libiscsi-bin",
        &["-i", "iqn.2026-11.io.quarry.test:no", &url],
    );
    assert!(!stranger.status.success());
}

#[test]
fn target_proves_itself_to_libiscsi_and_one_that_cannot_is_left() {
    let rig = rig(1 << 20);
    let mutual = |user: &str, secret: &str| {
        let url = format!("{}?target_user={user}&target_password={secret}", rig.url());
        run("iscsi-inq", "libiscsi-bin", &["-i", TOOL, &url])
    };
    let right = mutual(rig::TARGET_USER, rig::TARGET_SECRET);
    assert!(right.status.success(), "{}", text(&right));
    for (user, secret) in [
        (rig::TARGET_USER, "not-its-secret-16"),
        (rig::USER, rig::TARGET_SECRET),
    ] {
        let wrong = mutual(user, secret);
        assert!(!wrong.status.success(), "{}", text(&wrong));
    }
    rig.export(
        rig.volume,
        &[Grant {
            target_chap: None,
            ..grant(TOOL, Access::ReadWrite)
        }],
    );
    let none = mutual(rig::TARGET_USER, rig::TARGET_SECRET);
    assert!(!none.status.success(), "{}", text(&none));
}

/// Takes ten seconds for each limit.
#[test]
fn limits_hold_within_five_percent_over_ten_seconds() {
    let rate = |per_second| {
        Some(Rate {
            per_second: NonZeroU64::new(per_second).unwrap(),
            burst: 0,
        })
    };
    let limits = |commands, bytes| IoLimits {
        read: RateLimits { commands, bytes },
        ..IoLimits::NONE
    };
    let rig = rig(32 << 20);
    // iscsi-perf reads 64 blocks of 512 bytes at a time here.
    for (limits, expected) in [
        (limits(rate(1500), None), 1500),
        (limits(None, rate(25 << 20)), 800),
    ] {
        block_on(rig.target.set_limits(rig.volume, limits)).unwrap();
        let said = succeed(
            "iscsi-perf",
            "libiscsi-bin",
            &["-i", TOOL, "-m", "32", "-b", "64", "-t", "10", "-r", &rig.url()],
        );
        let average = said
            .rsplit("iops average")
            .next()
            .unwrap()
            .split_whitespace()
            .next();
        let iops: u64 = average.and_then(|number| number.parse().ok()).expect(&said);
        assert!(
            iops.abs_diff(expected) * 100 <= expected * 5,
            "{iops} for {expected}: {said}"
        );
    }
}

/// How tests of libiscsi's suite end that do not pass, with the reasons.
const EXPECTED: &str = include_str!("../../../scripts/iscsi-conformance.expected");

#[derive(PartialEq, Eq)]
enum Verdict {
    Passed,
    Skipped,
    Failed(String),
}

/// Runs one test of the suite, in a process of its own: one that crashes or hangs is one that fails.
fn suite_test(name: &str, url: &str) -> Verdict {
    let arguments = ["--dataloss", "--allow-sanitize", "-v", "-t", name, url, url];
    let output = run("iscsi-test-cu", "libiscsi-bin", &arguments);
    let said = text(&output);
    let mut numbers = said
        .lines()
        .filter_map(|line| line.trim().strip_prefix("tests "))
        .flat_map(str::split_whitespace)
        .filter_map(|word| word.parse::<u32>().ok());
    let (_total, ran, _passed, failed) = (numbers.next(), numbers.next(), numbers.next(), numbers.next());
    if !matches!(ran, Some(1..)) || failed != Some(0) {
        return Verdict::Failed(said);
    }
    let skipped = said.contains("[SKIPPED]");
    match skipped {
        true => Verdict::Skipped,
        false => Verdict::Passed,
    }
}

#[test]
fn libiscsi_suite_fails_only_where_it_is_known_why() {
    let rig = rig(256 << 20);
    let url = rig.url();
    let listed = succeed("iscsi-test-cu", "libiscsi-bin", &["--list"]);
    let mut seen = BTreeSet::new();
    let tests: Vec<&str> = listed
        .split_whitespace()
        .filter(|name| name.starts_with("SCSI.") || name.starts_with("iSCSI."))
        .filter(|name| name.matches('.').count() == 2)
        .filter(|name| seen.insert(name.split_once('.').map(|(_, test)| test)))
        .collect();
    assert!(tests.len() > 200, "the suite lists its tests: {listed}");
    let lines = EXPECTED.lines().map(str::trim);
    let expected: BTreeMap<&str, &str> = lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let kind = words.next()?;
            Some((words.next()?, kind))
        })
        .collect();
    // scripts/iscsi-conformance runs these too: they overwrite a volume again and again, and one sleeps a minute.
    const LONG: [&str; 2] = ["SCSI.Sanitize.Overwrite", "SCSI.Sanitize.Reset"];
    let (mut wrong, mut skipped) = (Vec::new(), 0);
    for name in tests.iter().filter(|name| !LONG.contains(*name)) {
        match (suite_test(name, &url), expected.get(name).copied()) {
            (Verdict::Passed, None) | (Verdict::Failed(_), Some("fault")) => {}
            (Verdict::Skipped, Some("skip")) => skipped += 1,
            (Verdict::Passed, Some(kind)) => wrong.push(format!("{name} passes, though listed as a {kind}")),
            (Verdict::Skipped, _) => wrong.push(format!("{name} is skipped")),
            (Verdict::Failed(said), _) => wrong.push(format!("{name} failed:\n{said}")),
        }
    }
    println!("{} tests, {skipped} skipped by the suite", tests.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}
