//! Who gets in, and what the others are told.

mod client;
mod rig;

use client::{Client, Login, Pdu, pairs};
use quarry_contract::conformance::block_on;
use quarry_contract::{Absence, Access, Grant, Target};
use rig::{INITIATOR, Rig, eventually, grant, initiator, volume};
use std::sync::{Arc, mpsc};
use std::time::Duration;

const STRANGER: &str = "iqn.2026-11.io.quarry.test:stranger";

#[test]
fn each_refusal_has_its_own_status() {
    let rig = Rig::new();
    let good = Login::to(&rig);
    let refused = |login: Login| Client::log_in(&rig, &login).err();
    let wrong_secret = Login {
        secret: "another-secret-1".into(),
        ..good.clone()
    };
    assert_eq!(refused(wrong_secret), Some(0x0201));
    let wrong_user = Login {
        user: "somebody".into(),
        ..good.clone()
    };
    assert_eq!(refused(wrong_user), Some(0x0201));
    let stranger = Login {
        initiator: STRANGER.into(),
        ..good.clone()
    };
    assert_eq!(refused(stranger), Some(0x0202));
    let nowhere = Login {
        target: rig.target.address_of(volume(9)).target_name,
        ..good.clone()
    };
    assert_eq!(refused(nowhere), Some(0x0203));
    assert_eq!(rig.session_count(), 0);

    assert_eq!(refused(good.clone()), None);
    block_on(rig.target.unexport(rig.volume)).unwrap();
    assert_eq!(refused(good.clone()), Some(0x0204));
    rig.target.set_absent(rig.volume, Absence::Unavailable);
    assert_eq!(refused(good.clone()), Some(0x0301));
    block_on(rig.target.unexport(rig.volume)).unwrap();
    assert_eq!(refused(good), Some(0x0204));
}

#[test]
fn of_an_exported_volume_nothing_is_said_that_it_is_absent() {
    let rig = Rig::new();
    for absence in [Absence::Unavailable, Absence::Removed] {
        rig.target.set_absent(rig.volume, absence);
        assert!(Client::log_in(&rig, &Login::to(&rig)).is_ok());
    }
}

#[test]
fn names_are_compared_without_regard_to_case() {
    let rig = Rig::new();
    let login = Login {
        initiator: INITIATOR.to_uppercase().replace("IQN", "iqn"),
        target: rig.name().to_uppercase().replace("IQN", "iqn"),
        ..Login::to(&rig)
    };
    assert!(Client::log_in(&rig, &login).is_ok());
}

#[test]
fn export_without_grants_refuses_every_login() {
    let rig = Rig::with(1 << 20, |_| {}, &[]);
    assert_eq!(Client::log_in(&rig, &Login::to(&rig)).err(), Some(0x0202));
}

#[test]
fn changed_credentials_hold_for_the_next_login_and_leave_live_sessions_alone() {
    let rig = Rig::new();
    let mut live = Client::login(&rig);
    let mut new = grant(INITIATOR, Access::ReadWrite);
    new.chap.secret = "another-secret-1".to_owned().into();
    assert!(block_on(rig.target.grant(rig.volume, new)).unwrap().is_changed());
    assert_eq!(live.read(0, 1).status, 0, "T3");
    let old = Login {
        isid: [0x40, 0, 0, 0, 0, 2],
        ..Login::to(&rig)
    };
    assert_eq!(Client::log_in(&rig, &old).err(), Some(0x0201), "T3");
    let new = Login {
        secret: "another-secret-1".into(),
        ..old
    };
    assert!(Client::log_in(&rig, &new).is_ok(), "T3");
}

#[test]
fn login_that_was_begun_with_a_revoked_secret_is_not_completed() {
    let rig = Rig::new();
    let old = Login::to(&rig);
    let mut new = grant(INITIATOR, Access::ReadWrite);
    new.chap.secret = "another-secret-1".to_owned().into();
    let changes: [fn(&Rig, Grant); 2] = [
        |rig, new| {
            block_on(rig.target.grant(rig.volume, new)).unwrap();
        },
        |rig, new| {
            block_on(rig.target.revoke(rig.volume, &new.initiator)).unwrap();
            block_on(rig.target.grant(rig.volume, new)).unwrap();
        },
    ];
    for change in changes {
        let good = grant(INITIATOR, Access::ReadWrite);
        block_on(rig.target.grant(rig.volume, good)).unwrap();
        // Challenged, or proved already, when the secret is changed.
        let mut challenged = Client::connect(rig.address());
        let challenge = challenged.challenge(&old).unwrap();
        let mut proved = Client::connect(rig.address());
        proved.authenticate(&old).unwrap();
        change(&rig, new.clone());
        let answered = challenged.answer(&old, &challenge);
        let late = answered.and_then(|()| challenged.login_step(&old, 0x87, &[]).map(drop));
        assert_eq!(late, Err(0x0201));
        assert_eq!(proved.login_step(&old, 0x87, &[]).map(drop), Err(0x0201));
        assert_eq!(rig.session_count(), 0, "T1");
    }
}

#[test]
fn same_initiator_and_isid_replace_the_old_session() {
    let rig = Rig::new();
    // Enough of them that old and new meet on the same reactor and on different ones.
    let mut last = Client::login(&rig);
    for _ in 0..8 {
        let new = Client::login(&rig);
        last.expect_close();
        last = new;
    }
    assert_eq!(rig.session_count(), 1);
    assert_eq!(last.read(0, 1).status, 0);

    let other = Login {
        isid: [0x40, 0, 0, 0, 0, 2],
        ..Login::to(&rig)
    };
    let _other = Client::log_in(&rig, &other).expect("another ISID is another session");
    assert_eq!(last.read(0, 1).status, 0, "the first session goes on");
    assert_eq!(rig.session_count(), 2);
}

#[test]
fn reinstatement_waits_for_the_old_sessions_writes() {
    let rig = Rig::new();
    let mut old = Client::login(&rig);
    rig.device.hold();
    let write = old.command_pdu(&client::cdb10(0x2a, 0, 8), 4096, 0xa1, &[1; 4096]);
    old.send(&write);
    eventually("the write is at the device", || rig.device.held_requests() == 1);

    let mut new = Client::connect(rig.address());
    let login = Login::to(&rig);
    new.authenticate(&login).unwrap();
    let keys = [("MaxRecvDataSegmentLength", "262144")];
    let (done, waits) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let result = new.login_step(&login, 0x87, &keys).map(|_| new);
        done.send(()).unwrap();
        result
    });
    assert!(
        waits.recv_timeout(client::SILENCE).is_err(),
        "the new session must not begin while a write of the old one is at the device"
    );
    rig.device.release();
    waits.recv_timeout(rig::DEADLINE).expect("then it begins");
    let mut new = thread.join().unwrap().expect("the login succeeds");
    old.expect_close();
    assert_eq!(new.command(&[0x00], 0, &[]).sense, Some((6, 0x29, 0)));
    assert_eq!(new.read(0, 8).data, vec![1; 4096]);
    assert_eq!(rig.session_count(), 1);
}

#[test]
fn discovery_shows_an_initiator_its_own_targets_only() {
    let rig = Rig::new();
    rig.export(volume(2), &[grant(STRANGER, Access::ReadWrite)]);
    rig.export(
        volume(3),
        &[
            grant(STRANGER, Access::ReadWrite),
            grant(INITIATOR, Access::ReadOnly),
        ],
    );
    let mut client = Client::connect(rig.address());
    let login = Login::to(&rig);
    let hello = [
        ("InitiatorName", INITIATOR),
        ("SessionType", "Discovery"),
        ("AuthMethod", "None"),
    ];
    client.login_step(&login, 0x81, &hello).expect("security");
    client.login_step(&login, 0x87, &[]).expect("operational");
    let request = Pdu::new(0x04, 0x80)
        .put32(16, 7)
        .put32(20, 0xffff_ffff)
        .put32(24, client.cmd_sn)
        .with_data(b"SendTargets=All\0");
    client.send(&request);
    let answer = client.receive().unwrap();
    assert_eq!((answer.opcode(), answer.header[1]), (0x24, 0x80));
    let portal = format!("{},1", rig.address());
    let name = |number| rig.target.address_of(volume(number)).target_name;
    let pair = |key: &str, value: String| (key.to_owned(), value);
    assert_eq!(
        pairs(&answer.data),
        [
            pair("TargetName", name(1)),
            pair("TargetAddress", portal.clone()),
            pair("TargetName", name(3)),
            pair("TargetAddress", portal),
        ]
    );
    // It can do no I/O.
    let read = client.command_pdu(&client::cdb10(0x28, 0, 1), 512, 0xc1, &[]);
    client.send(&read);
    client.expect_close();
}

#[test]
fn long_list_of_targets_comes_in_pieces() {
    let rig = Rig::new();
    for number in 2..60 {
        rig.export(volume(number), &[grant(INITIATOR, Access::ReadWrite)]);
    }
    let mut client = Client::connect(rig.address());
    let login = Login::to(&rig);
    let hello = [("InitiatorName", INITIATOR), ("SessionType", "Discovery")];
    let keys = [hello[0], hello[1], ("MaxRecvDataSegmentLength", "512")];
    client.login_step(&login, 0x87, &keys).expect("login");
    let mut text = Vec::new();
    let (mut ttt, mut question) = (0xffff_ffff, &b"SendTargets=All\0"[..]);
    loop {
        let request = Pdu::new(0x04, 0x80)
            .put32(16, 7)
            .put32(20, ttt)
            .put32(24, client.cmd_sn)
            .with_data(question);
        client.cmd_sn += 1;
        client.send(&request);
        let answer = client.receive().unwrap();
        assert!(answer.data.len() <= 512);
        text.extend_from_slice(&answer.data);
        if answer.header[1] & 0x80 != 0 {
            break;
        }
        assert_eq!(answer.header[1] & 0x40, 0x40, "the C bit says that more follows");
        (ttt, question) = (answer.be32(20), &[]);
    }
    let names = pairs(&text);
    assert_eq!(names.iter().filter(|(key, _)| key == "TargetName").count(), 59);
}

#[test]
fn login_that_takes_too_long_is_cut_off() {
    let rig = Rig::with(
        1 << 20,
        |config| config.login_timeout = Duration::from_millis(200),
        &[grant(INITIATOR, Access::ReadWrite)],
    );
    let mut silent = Client::connect(rig.address());
    let mut discovery = Client::connect(rig.address());
    let hello = [("InitiatorName", INITIATOR), ("SessionType", "Discovery")];
    discovery
        .login_step(&Login::to(&rig), 0x87, &hello)
        .expect("discovery");
    let mut slow = Client::connect(rig.address());
    let drip = std::thread::spawn(move || {
        use std::io::Write;
        // A byte now and then makes a login no shorter.
        let began = std::time::Instant::now();
        while slow.socket.write_all(&[0x43]).is_ok() {
            assert!(began.elapsed() < rig::DEADLINE, "the login goes on for ever");
            std::thread::park_timeout(Duration::from_millis(20));
        }
    });
    let mut halfway = Client::connect(rig.address());
    halfway.authenticate(&Login::to(&rig)).unwrap();
    silent.expect_close();
    halfway.expect_close();
    discovery.expect_close();
    drip.join().expect("no panic");
    Client::login(&rig);
}

#[test]
fn flood_of_connections_is_bounded_and_ends() {
    let rig = Rig::with(
        1 << 20,
        |config| {
            config.max_pending_logins = 8;
            config.login_timeout = Duration::from_secs(2);
        },
        &[grant(INITIATOR, Access::ReadWrite)],
    );
    let mut flood: Vec<Client> = (0..40).map(|_| Client::connect(rig.address())).collect();
    // The newest is let in at once; the oldest beyond the bound are closed, the others ended by the timer.
    Client::login(&rig);
    flood.iter_mut().for_each(Client::expect_close);
    Client::login(&rig);
}

#[test]
fn sessions_are_limited() {
    let rig = Rig::with(
        1 << 20,
        |config| config.max_sessions = 2,
        &[grant(INITIATOR, Access::ReadWrite)],
    );
    let login = |number: u8| Login {
        isid: [0x40, 0, 0, 0, 0, number],
        ..Login::to(&rig)
    };
    let _one = Client::log_in(&rig, &login(1)).unwrap();
    let two = Client::log_in(&rig, &login(2)).unwrap();
    assert_eq!(Client::log_in(&rig, &login(3)).err(), Some(0x0302));
    drop(two);
    eventually("a place is free again", || {
        Client::log_in(&rig, &login(3)).is_ok()
    });
}

#[test]
fn session_shows_who_is_logged_in_from_where() {
    let rig = Rig::new();
    let client = Client::login(&rig);
    let sessions = block_on(rig.target.sessions(Some(rig.volume))).unwrap();
    assert_eq!(sessions.len(), 1);
    assert_eq!(sessions[0].initiator, initiator(INITIATOR));
    assert_eq!(sessions[0].peer, client.socket.local_addr().unwrap());
    assert_eq!(sessions[0].portal, rig.target.portals()[0]);
    assert_eq!(sessions[0].tsih, client.tsih);
}

#[test]
fn connections_of_a_start_with_held_logins_wait_and_are_answered_in_the_end() {
    let rig = Rig::with(64 << 20, |config| config.hold_logins = true, &[]);
    let (target, login) = (Arc::clone(&rig.target), Login::to(&rig));
    let (sender, receiver) = mpsc::channel();
    let address = rig.address();
    let waiting = std::thread::spawn(move || {
        let mut client = Client::connect(address);
        sender.send(()).expect("the test waits");
        client.authenticate(&login)
    });
    receiver.recv().expect("the connection is taken by the system");
    // Not there yet when the initiator came; there when it is let in.
    rig.export(rig.volume, &[grant(INITIATOR, Access::ReadWrite)]);
    target.accept_logins();
    assert_eq!(waiting.join().expect("no panic"), Ok(()));
}
