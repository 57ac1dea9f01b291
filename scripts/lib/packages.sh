# Sourced by the scripts beside it: Debian packages, installed by name when they are missing.

# need PACKAGE...: installs those that are not there; as root, or through sudo. One may put out another that was there in a version of its
# own (a newer qemu-utils than Debian's, say), so what is missing then is installed once more.
need() {
    local round
    for round in 1 2; do
        install_missing "$@"
    done
}

install_missing() {
    local missing=() package as_root=()
    for package; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    if ((EUID != 0)); then
        if ! command -v sudo >/dev/null; then
            echo "these packages are missing; install them as root: apt-get install ${missing[*]}" >&2
            exit 1
        fi
        as_root=(sudo)
    fi
    echo "Installing ${missing[*]}" >&2
    "${as_root[@]}" apt-get update -qq >&2
    DEBIAN_FRONTEND=noninteractive \
        "${as_root[@]}" apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
}
