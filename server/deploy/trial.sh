#!/bin/sh
# The trial of compose.yaml: make a demo's consortium once, and put the coordinator's folder where its container looks.
#
#   sh trial.sh ADDRESS FOLDER COORDINATOR-FOLDER
#
# A demo's coordinator listens on loopback only, since all of a demo is on one machine; here its nodes are in containers
# of their own, so it listens on all addresses of its container. No production node obeys a demo's root.
set -eu
address=$1 folder=$2 coordinator=$3
if [ -e "$coordinator/identity.key" ]; then
    echo "$coordinator is there already; nothing to make"
    exit 0
fi
umask 077
# What an earlier try left half-made.
rm -rf "$folder/consortium"
confide consortium start-kit "$folder/consortium" --name trial --demo --address "$address" --data faq --privacy none \
    --fleet-port 9442 --control-port 9443 \
    --organization hospital-a --organization bank-b --organization law-firm-c
sed -i 's/"bind":"127\.0\.0\.1"/"bind":"0.0.0.0"/' "$folder/consortium/coordinator/server.json"
# Copied, then renamed: the two are different volumes, and an interrupted copy must not look whole.
cp -R "$folder/consortium/coordinator" "$coordinator.new"
mv "$coordinator.new" "$coordinator"
rm -rf "$folder/consortium/coordinator"
