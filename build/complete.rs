//! Completions for bash, zsh and fish.

use crate::text::{Opt, Value, options};

type Commands = [(String, String)];
type Pages<'a> = [(&'a str, String)];

/// A pattern of `case`: the options of any command whose value is of a kind, each in its forms.
fn with_value(pages: &Pages<'_>, wanted: impl Fn(&Value) -> bool) -> String {
    let mut forms: Vec<String> = pages
        .iter()
        .flat_map(|(_, text)| options(text))
        .filter(|option| wanted(&option.kind()))
        .flat_map(|option| forms(&option))
        .collect();
    forms.sort();
    forms.dedup();
    if forms.is_empty() { "''".into() } else { forms.join("|") }
}

/// `--publish`, `-p`
fn forms(option: &Opt) -> Vec<String> {
    let short = option.short.map(|c| format!("-{c}"));
    [format!("--{}", option.name)].into_iter().chain(short).collect()
}

fn names(commands: &Commands) -> String {
    commands.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(" ")
}

fn levels(pages: &Pages<'_>) -> String {
    pages
        .iter()
        .flat_map(|(_, text)| options(text))
        .find_map(|option| match option.kind() {
            Value::Words(words) => Some(words.join(" ")),
            _ => None,
        })
        .unwrap_or_default()
}

pub(crate) fn bash(commands: &Commands, pages: &Pages<'_>) -> String {
    let mut cases = String::new();
    for (name, text) in pages {
        let words: Vec<String> = options(text).iter().flat_map(forms).collect();
        cases.push_str(&format!("        {name}) options='{}' ;;\n", words.join(" ")));
    }
    format!(
        r#"# bash completion for ringtap; made by its build
_ringtap() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} options='' i
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W '{names} help --help --version' -- "$cur"))
        return
    fi
    if [ "${{COMP_WORDS[1]}}" = help ]; then
        COMPREPLY=($(compgen -W '{names}' -- "$cur"))
        return
    fi
    # What follows the first operand of run is a command line of its own.
    if [ "${{COMP_WORDS[1]}}" = run ]; then
        for ((i = 2; i < COMP_CWORD; i++)); do
            case ${{COMP_WORDS[i]}} in
            {takes}) i=$((i + 1)) ;;
            --)
                i=$((i + 1))
                break
                ;;
            -*) ;;
            *) break ;;
            esac
        done
        if [ "$i" -lt "$COMP_CWORD" ] || {{ [ "$i" -eq "$COMP_CWORD" ] && [[ $cur != -* ]]; }}; then
            if declare -F _command_offset >/dev/null; then
                _command_offset "$i"
            elif [ "$i" -eq "$COMP_CWORD" ]; then
                COMPREPLY=($(compgen -c -- "$cur"))
            else
                compopt -o default 2>/dev/null
            fi
            return
        fi
    fi
    case $prev in
    {words})
        COMPREPLY=($(compgen -W '{levels}' -- "$cur"))
        return
        ;;
    {interfaces})
        COMPREPLY=($(compgen -W "$(ls /sys/class/net 2>/dev/null)" -- "$cur"))
        return
        ;;
    {files})
        compopt -o default 2>/dev/null
        return
        ;;
    {others}) return ;;
    esac
    case ${{COMP_WORDS[1]}} in
{cases}    esac
    if [[ $cur == -* ]]; then
        COMPREPLY=($(compgen -W "$options" -- "$cur"))
    else
        compopt -o default 2>/dev/null
    fi
}}
complete -F _ringtap ringtap
"#,
        names = names(commands),
        takes = with_value(pages, |v| *v != Value::No),
        words = with_value(pages, |v| matches!(v, Value::Words(_))),
        levels = levels(pages),
        interfaces = with_value(pages, |v| *v == Value::Interface),
        files = with_value(pages, |v| *v == Value::File),
        others = with_value(pages, |v| *v == Value::Other),
    )
}

/// A text within single quotes.
fn quoted(text: &str) -> String {
    text.replace('\'', "'\\''")
}

pub(crate) fn zsh(commands: &Commands, pages: &Pages<'_>) -> String {
    let described: Vec<String> = commands
        .iter()
        .map(|(name, text)| format!("        '{name}:{}'", quoted(&text.replace(':', "\\:"))))
        .collect();
    let mut cases = String::new();
    for (name, text) in pages {
        cases.push_str(&format!("    {name})\n        _arguments -s -S \\\n"));
        for option in options(text) {
            let brief = quoted(&option.brief().replace('[', "\\[").replace(']', "\\]"));
            let value = option.value.as_deref().unwrap_or_default();
            let action = match option.kind() {
                Value::No => String::new(),
                Value::File => format!(":{value}:_files"),
                Value::Interface => format!(":{value}:_net_interfaces"),
                Value::Words(words) => format!(":{value}:({})", words.join(" ")),
                Value::Other => format!(":{value}: "),
            };
            for form in forms(&option) {
                // Some may be given again; which, the program says.
                cases.push_str(&format!("            '*{form}[{brief}]{action}' \\\n"));
            }
        }
        let operands = match *name {
            "run" => "'(-)1: :_command_names -e' '*::: :_normal'",
            _ => "'*: :_files'",
        };
        cases.push_str(&format!("            {operands}\n        ;;\n"));
    }
    format!(
        "#compdef ringtap\n# zsh completion for ringtap; made by its build\n\
         _ringtap() {{\n    local -a commands\n    commands=(\n{}\n    )\n    \
         if (( CURRENT == 2 )); then\n        _describe -t commands command commands\n        return\n    fi\n    \
         shift words\n    (( CURRENT-- ))\n    case $words[1] in\n{cases}    esac\n}}\n\
         _ringtap \"$@\"\n",
        described.join("\n")
    )
}

pub(crate) fn fish(commands: &Commands, pages: &Pages<'_>) -> String {
    let fish_quoted = |text: &str| text.replace('\\', "\\\\").replace('\'', "\\'");
    let mut out = String::from("# fish completion for ringtap; made by its build\n");
    for (name, text) in commands {
        out.push_str(&format!(
            "complete -c ringtap -f -n __fish_use_subcommand -a {name} -d '{}'\n",
            fish_quoted(text)
        ));
    }
    for (name, text) in pages {
        for option in options(text) {
            let short = option.short.map(|c| format!(" -s {c}")).unwrap_or_default();
            let value = match option.kind() {
                Value::No => String::new(),
                Value::File => " -r -F".into(),
                Value::Interface => " -x -a '(__fish_print_interfaces)'".into(),
                Value::Words(words) => format!(" -x -a '{}'", words.join(" ")),
                Value::Other => " -x".into(),
            };
            out.push_str(&format!(
                "complete -c ringtap -n '__fish_seen_subcommand_from {name}'{short} -l {}{value} -d '{}'\n",
                option.name,
                fish_quoted(option.brief())
            ));
        }
    }
    out
}
