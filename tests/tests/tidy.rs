//! The house rules that a machine can check: of files, names and words, of layers, of rules and the
//! tests that cite them. Never here: format and lints, which have tools of their own.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Files that may be long, and why.
const LONG: [(&str, &str); 2] = [
    ("client/python/src/semlock.rs", "one Python type, whose methods can't be told apart in Rust"),
    ("tests/src/bin/actor/face.rs", "one macro, whose text is both faces of the client"),
];
/// A file is read in one go up to here.
const LINES: usize = 410;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace")
}

/// Every file that git knows or could add, from the root.
fn files() -> Vec<PathBuf> {
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git");
    let listed = String::from_utf8(listed.stdout).expect("UTF-8");
    let files: Vec<PathBuf> = listed.lines().map(PathBuf::from).collect();
    assert!(files.len() > 50, "git lists {} files", files.len());
    files.into_iter().filter(|file| root().join(file).is_file()).collect()
}

fn with_extension(extension: &str) -> impl Iterator<Item = (PathBuf, String)> {
    let files = files().into_iter().filter(move |f| f.extension().is_some_and(|e| e == extension));
    files.map(|file| {
        let text = fs::read_to_string(root().join(&file)).expect("a text");
        (file, text)
    })
}

fn assert_none(what: &str, found: Vec<String>) {
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}

#[test]
fn every_rust_file_begins_by_saying_what_it_holds() {
    let silent = with_extension("rs").filter(|(_, text)| !text.starts_with("//! "));
    let silent = silent.map(|(file, _)| file.display().to_string()).collect();
    assert_none("no //! at the top", silent);
}

#[test]
fn no_rust_file_is_too_long_to_be_read_in_one_go() {
    let excused = |file: &Path| LONG.iter().any(|(long, _)| Path::new(long) == file);
    let long = with_extension("rs").filter(|(file, text)| {
        let lines = text.lines().count();
        lines > LINES && !excused(file)
    });
    let long = long.map(|(file, text)| format!("{}: {}", file.display(), text.lines().count()));
    assert_none("too long, and not in the list with a reason", long.collect());
}

#[test]
fn nothing_is_named_after_nothing() {
    let vague = ["util", "utils", "common", "helper", "helpers", "misc"];
    let is_vague = |part: std::path::Component<'_>| {
        let name = Path::new(part.as_os_str()).file_stem().unwrap_or_default();
        vague.iter().any(|vague| name.eq_ignore_ascii_case(vague))
    };
    let found = files().into_iter().filter(|file| file.components().any(is_vague));
    assert_none("vague names", found.map(|file| file.display().to_string()).collect());
}

#[test]
fn the_core_has_neither_runtime_nor_wire_beneath_it() {
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "-p", "syncd-core", "--edges", "normal", "--prefix", "none", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo tree");
    let tree = String::from_utf8(tree.stdout).expect("UTF-8");
    assert!(tree.starts_with("syncd-core"), "{tree}");
    let foreign = |line: &&str| {
        let name = line.split(' ').next().unwrap_or_default();
        ["tokio", "tonic", "prost", "syncd-proto"].contains(&name)
    };
    assert_none("in the core's tree", tree.lines().filter(foreign).map(str::to_owned).collect());
}

#[test]
fn no_build_has_bugs_or_failpoints_that_was_not_asked_for_them() {
    // Of the workspace as `cargo build` and `cargo test` have it, what is for tests alone included.
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--workspace", "--offline", "--prefix", "none", "--format", "{p} [{f}]"])
        .current_dir(root())
        .output()
        .expect("cargo tree");
    let tree = String::from_utf8(tree.stdout).expect("UTF-8");
    assert!(tree.contains("syncd-core v"), "{tree}");
    let features = |line: &str| line.rsplit_once('[').map_or("", |(_, rest)| rest).to_owned();
    let is_on =
        |line: &&str| ["sabotage", "failpoints"].iter().any(|name| features(line).contains(name));
    assert_none(
        "built with bugs or failpoints",
        tree.lines().filter(is_on).map(str::to_owned).collect(),
    );
}

/// Rule numbers in a text: `R12`.
fn rules(text: &str) -> BTreeSet<u32> {
    let mut rules = BTreeSet::new();
    for word in text.split(|c: char| !c.is_ascii_alphanumeric()) {
        if let Some(Ok(number)) = word.strip_prefix('R').map(str::parse) {
            rules.insert(number);
        }
    }
    rules
}

#[test]
fn every_rule_is_cited_by_a_test_and_no_other_is() {
    let semantics = fs::read_to_string(root().join("docs/SEMANTICS.md")).expect("the rules");
    let stated: BTreeSet<u32> = semantics
        .lines()
        .filter(|line| line.starts_with("- **R"))
        .map(|line| *rules(line.split("**").nth(1).unwrap_or_default()).first().expect("a number"))
        .collect();
    assert_eq!(stated, (1..=stated.len() as u32).collect(), "numbers without a gap");
    let mut cited = BTreeSet::new();
    for (file, text) in with_extension("script") {
        let lines = text.lines().filter(|line| line.starts_with("rules "));
        let here: BTreeSet<u32> = lines.flat_map(rules).collect();
        let unknown: Vec<_> = here.difference(&stated).collect();
        assert!(unknown.is_empty(), "{}: no such rules: {unknown:?}", file.display());
        cited.extend(here);
    }
    for (file, text) in with_extension("rs") {
        let is_citation = |line: &&str| {
            let line = line.trim_start();
            let ways = ["Rule R", "Rules R", "(R"];
            line.starts_with("//") && ways.iter().any(|way| line.contains(way))
        };
        let here: BTreeSet<u32> = text.lines().filter(is_citation).flat_map(rules).collect();
        let unknown: Vec<_> = here.difference(&stated).collect();
        assert!(unknown.is_empty(), "{}: no such rules: {unknown:?}", file.display());
        cited.extend(here);
    }
    let uncited: Vec<_> = stated.difference(&cited).map(|rule| format!("R{rule}")).collect();
    assert_none("rules that no test cites", uncited);
}

/// The cells in backquotes of a column of the glossary.
fn glossary(column: usize) -> BTreeSet<String> {
    let text = fs::read_to_string(root().join("docs/ARCHITECTURE.md")).expect("the page");
    let (_, glossary) = text.split_once("## Glossary").expect("a glossary");
    let rows = glossary.lines().skip_while(|line| !line.starts_with('|'));
    let rows = rows.take_while(|line| line.starts_with('|')).skip(2);
    let mut found = BTreeSet::new();
    for row in rows {
        let cell = row.split('|').nth(column).expect("a cell");
        found.extend(cell.split('`').skip(1).step_by(2).map(str::to_owned));
    }
    assert!(found.len() > 5, "{found:?}");
    found
}

#[test]
fn each_type_of_the_glossary_exists_and_no_other_word_for_it() {
    let (mut types, banned) = (glossary(3), glossary(4));
    let mut found = Vec::new();
    for (file, text) in ["rs", "proto", "py", "pyi"].into_iter().flat_map(with_extension) {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        for (line, number) in text.lines().zip(1..) {
            let words: Vec<&str> =
                line.split(|c| !is_word(c)).filter(|word| !word.is_empty()).collect();
            for pair in words.windows(2) {
                if ["struct", "enum", "trait", "type", "message"].contains(&pair[0]) {
                    types.remove(pair[1]);
                }
            }
            let banned = words.iter().filter(|word| banned.contains(**word));
            found.extend(banned.map(|word| format!("{}:{number}: {word}", file.display())));
        }
    }
    assert_none("types of the glossary that the sources don't have", types.into_iter().collect());
    assert_none("words that the glossary has others for", found);
}

#[test]
fn readme_and_manifest_name_the_same_rust() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("the manifest");
    let version = manifest.lines().find_map(|line| line.strip_prefix("rust-version = "));
    let version = version.expect("a rust-version").trim_matches('"');
    let readme = fs::read_to_string(root().join("README.md")).expect("the README");
    assert!(readme.contains(&format!("Rust {version}")), "README doesn't say Rust {version}");
}

#[test]
fn no_file_knows_the_machine_that_it_was_written_on() {
    // Put together, lest this file find itself.
    let homes = [["/ho", "me/"].concat(), ["/wo", "rk/"].concat(), ["/ro", "ot/"].concat()];
    let kinds = ["rs", "md", "toml", "proto", "py", "script", "service", "socket", "pyi"];
    let found = files().into_iter().filter(|file| {
        let is_text = file.extension().is_none_or(|e| kinds.iter().any(|kind| e == *kind));
        let text = fs::read_to_string(root().join(file)).unwrap_or_default();
        is_text && homes.iter().any(|home| text.contains(home.as_str()))
    });
    assert_none("a machine's paths", found.map(|file| file.display().to_string()).collect());
}

#[test]
fn the_clients_protocol_is_pure() {
    let impure = [
        "Waker",
        "thread",
        "async ",
        "std::net",
        "std::os",
        "std::io",
        "tokio",
        "Instant::now",
        "SystemTime",
        "Future",
        "h2::",
    ];
    let mut found = Vec::new();
    for (file, text) in with_extension("rs") {
        let path = file.display().to_string();
        let pure = path.starts_with("client/src/session/protocol") && !path.contains("/tests");
        let code = text.lines().filter(|line| pure && !line.trim_start().starts_with("//"));
        let impure = code.filter(|line| impure.iter().any(|word| line.contains(word)));
        found.extend(impure.map(|line| format!("{}: {line}", file.display())));
    }
    assert_none("in a state machine that has neither I/O, tasks nor a clock", found);
}
