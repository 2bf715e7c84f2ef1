//! Finds shared namespaces with a name similar to a given one: a misspelt name makes a private
//! namespace, in which nobody else is.

/// The names in `shared` that `name` may be a misspelling of.
pub(crate) fn similar(name: &str, shared: &[String]) -> Vec<String> {
    shared.iter().filter(|shared| is_similar(name, shared)).cloned().collect()
}

fn is_similar(name: &str, shared: &str) -> bool {
    let plain = |text: &str| -> String {
        text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
    };
    let (name, shared) = (plain(name), plain(shared));
    // A difference of one letter says nothing in a name of two.
    let slips = match name.chars().count().min(shared.chars().count()) {
        0..=2 => 0,
        3..=5 => 1,
        _ => 2,
    };
    strsim::osa_distance(&name, &shared) <= slips
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelling_is_told_from_another_name() {
        for (name, shared) in [
            ("job", "jobs"),
            ("Jobs", "jobs"),
            ("nightly_jobs", "nightly-jobs"),
            ("nigthly", "nightly"),
            ("backup-serer", "backup-server"),
        ] {
            assert!(is_similar(name, shared), "{name} {shared}");
        }
        for (name, shared) in [("a", "b"), ("ci", "cd"), ("mail", "jobs"), ("backup", "nightly")] {
            assert!(!is_similar(name, shared), "{name} {shared}");
        }
        assert_eq!(similar("job", &["jobs".into(), "mail".into()]), ["jobs"]);
    }
}
