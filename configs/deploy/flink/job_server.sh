#!/bin/sh
# Starts Beam's job server, which translates a graph and submits it to Flink: job-server FLINK_MASTER JOB_HOST
set -eu
logging=$(printf '%s:' /opt/flink/lib/log4j-*.jar)
# shellcheck disable=SC2086 - JAVA_OPTIONS is a list of words
exec java -Xmx1g ${JAVA_OPTIONS:-} -cp "/opt/beam/jars/*:$logging" \
    -Dlog4j.configurationFile=/opt/flink/conf/log4j-session.properties \
    org.apache.beam.runners.flink.FlinkJobServerDriver \
    --flink-master="$1" --job-host="$2" \
    --job-port=8099 --artifact-port=8098 --expansion-port=8097 --artifacts-dir=/tmp/beam-artifacts
