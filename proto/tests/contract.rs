//! What may never happen to the contract: something undocumented, something renumbered.

use std::fmt::Write;
use std::{env, fs};

use prost::Message;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet,
};
use quarry_proto::v1::{ChapCredentials, ConnectionInfo, FILE_DESCRIPTOR_SET, Reason};

fn contract() -> Vec<FileDescriptorProto> {
    let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
    set.file
        .into_iter()
        .filter(|file| file.package() == "quarry.v1")
        .collect()
}

/// Returns the path (as source info writes it) and the name of everything in a file that needs a comment.
/// Field numbers of descriptor.proto: file 4 message, 5 enum, 6 service; message 2 field, 3 nested, 4 enum,
/// 8 oneof; enum 2 value; service 2 method.
fn documentable(file: &FileDescriptorProto) -> Vec<(Vec<i32>, String)> {
    let mut found = Vec::new();
    for (index, message) in (0..).zip(&file.message_type) {
        message_items(&[4, index], message.name(), message, &mut found);
    }
    for (index, item) in (0..).zip(&file.enum_type) {
        enum_items(&[5, index], item.name(), item, &mut found);
    }
    for (index, service) in (0..).zip(&file.service) {
        found.push((vec![6, index], service.name().to_owned()));
        for (at, method) in (0..).zip(&service.method) {
            found.push((
                vec![6, index, 2, at],
                format!("{}.{}", service.name(), method.name()),
            ));
        }
    }
    found
}

fn message_items(path: &[i32], name: &str, message: &DescriptorProto, found: &mut Vec<(Vec<i32>, String)>) {
    if message
        .options
        .as_ref()
        .is_some_and(|options| options.map_entry())
    {
        return;
    }
    let below = |kind: i32, index: i32| [path, &[kind, index]].concat();
    found.push((path.to_vec(), name.to_owned()));
    for (index, field) in (0..).zip(&message.field) {
        found.push((below(2, index), format!("{name}.{}", field.name())));
    }
    for (index, nested) in (0..).zip(&message.nested_type) {
        message_items(
            &below(3, index),
            &format!("{name}.{}", nested.name()),
            nested,
            found,
        );
    }
    for (index, item) in (0..).zip(&message.enum_type) {
        enum_items(&below(4, index), &format!("{name}.{}", item.name()), item, found);
    }
    for (index, oneof) in (0..).zip(&message.oneof_decl) {
        found.push((below(8, index), format!("{name}.{}", oneof.name())));
    }
}

fn enum_items(path: &[i32], name: &str, item: &EnumDescriptorProto, found: &mut Vec<(Vec<i32>, String)>) {
    found.push((path.to_vec(), name.to_owned()));
    for (index, value) in (0..).zip(&item.value) {
        found.push(([path, &[2, index]].concat(), format!("{name}.{}", value.name())));
    }
}

#[test]
fn every_service_method_message_field_and_value_is_documented() {
    let mut missing = Vec::new();
    let mut seen = 0;
    for file in contract() {
        let locations = &file
            .source_code_info
            .as_ref()
            .expect("descriptors keep their comments")
            .location;
        for (path, name) in documentable(&file) {
            let comment = locations
                .iter()
                .find(|l| l.path == path)
                .map(|l| l.leading_comments().trim());
            // A comment is a sentence; a word or two is a placeholder.
            if comment.is_none_or(|text| text.len() < 5 || !text.ends_with('.')) {
                missing.push(format!("{}: {name}", file.name()));
            }
            seen += 1;
        }
    }
    assert!(seen > 200, "the walk found only {seen} items");
    assert!(
        missing.is_empty(),
        "without a comment that ends in a full stop: {missing:#?}"
    );
}

/// Writes the contract down as one line for each number that is on the wire.
fn wire_lines() -> String {
    let mut text = String::new();
    for file in contract() {
        for message in &file.message_type {
            message_lines(&mut text, message.name(), message);
        }
        for item in &file.enum_type {
            enum_lines(&mut text, item.name(), item);
        }
        for service in &file.service {
            for method in &service.method {
                let (input, output) = (method.input_type(), method.output_type());
                let name = method.name();
                writeln!(text, "rpc {}.{name} {input} {output}", service.name()).unwrap();
            }
        }
    }
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines.join("\n") + "\n"
}

fn message_lines(text: &mut String, name: &str, message: &DescriptorProto) {
    for field in &message.field {
        writeln!(
            text,
            "message {name} {:05} {} {}",
            field.number(),
            field.name(),
            kind(field)
        )
        .unwrap();
    }
    for nested in &message.nested_type {
        message_lines(text, &format!("{name}.{}", nested.name()), nested);
    }
    for item in &message.enum_type {
        enum_lines(text, &format!("{name}.{}", item.name()), item);
    }
}

fn enum_lines(text: &mut String, name: &str, item: &EnumDescriptorProto) {
    for value in &item.value {
        writeln!(text, "enum {name} {:05} {}", value.number(), value.name()).unwrap();
    }
}

fn kind(field: &FieldDescriptorProto) -> String {
    let base = match field.type_name() {
        "" => format!("{:?}", field.r#type()).to_lowercase(),
        name => name.trim_start_matches('.').to_owned(),
    };
    format!("{:?} {base}", field.label()).to_lowercase()
}

#[test]
fn numbers_on_the_wire_are_those_of_the_golden_file() {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/contract.golden");
    let now = wire_lines();
    if env::var_os("UPDATE").is_some() {
        fs::write(golden, &now).unwrap();
    }
    let before = fs::read_to_string(golden).unwrap();
    // Numbers may be added and nothing else: whatever was there is still there.
    let lost: Vec<&str> = before
        .lines()
        .filter(|line| !now.lines().any(|l| l == *line))
        .collect();
    assert!(
        lost.is_empty(),
        "callers depend on these, they may not change: {lost:#?}"
    );
    assert_eq!(
        now, before,
        "the contract has grown: write it down with UPDATE=1 cargo test -p quarry-proto"
    );
}

#[test]
fn reasons_are_named_without_their_prefix_and_found_again() {
    assert_eq!(Reason::HasAttachments.as_error_info(), "HAS_ATTACHMENTS");
    assert_eq!(
        Reason::from_error_info("HAS_ATTACHMENTS"),
        Some(Reason::HasAttachments)
    );
    assert_eq!(Reason::from_error_info("NO_SUCH"), None);
}

#[test]
fn secrets_do_not_show_in_debug_output() {
    let chap = ChapCredentials {
        username: "user".into(),
        secret: "hush".into(),
    };
    let info = ConnectionInfo {
        cinder_json: "hush".into(),
        ..Default::default()
    };
    let text = format!("{chap:?} {info:?}");
    assert!(text.contains("user") && !text.contains("hush"), "{text}");
}
