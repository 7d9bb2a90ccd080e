-- Ends a wrk run with one line of JSON. Times are microseconds, as wrk keeps them.
-- wrk counts as a status error what is above 399; the servers measured here never answer 1xx or 3xx.
done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '{"duration_us":%d,"requests":%d,"bytes":%d,'
      .. '"p50":%d,"p90":%d,"p99":%d,"p99.9":%d,"max":%d,'
      .. '"connect":%d,"read":%d,"write":%d,"timeout":%d,"status":%d}\n',
    summary.duration, summary.requests, summary.bytes,
    latency:percentile(50), latency:percentile(90), latency:percentile(99), latency:percentile(99.9), latency.max,
    errors.connect, errors.read, errors.write, errors.timeout, errors.status))
end
