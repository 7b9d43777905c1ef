import java.io.BufferedReader;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.TimeUnit;

/**
 * Runs one command through a sidecar, from Java 17 and later; nothing but the JDK is needed.
 *
 * <pre>java Runner.java SIDECAR CONFIG COMMAND ...</pre>
 *
 * CONFIG is a file with the sidecar's config. COMMAND gets the port in SSM_SIDECAR_PORT, and in place of {port} in
 * its arguments. Exits with the command's status, or without a tunnel with the sidecar's.
 */
public final class Runner {
    /** Limit for a sidecar that hangs; otherwise it ends by itself after "timeouts.ready_s". */
    private static final long READY_LIMIT_S = 90;

    private static final long STOP_LIMIT_S = 10;

    public static void main(String[] arguments) throws Exception {
        if (arguments.length < 3) {
            System.err.println("usage: java Runner.java SIDECAR CONFIG COMMAND ...");
            System.exit(64);
        }
        List<String> command = List.of(arguments).subList(2, arguments.length);
        int status = 0;
        int ended;
        try (Sidecar sidecar = new Sidecar(arguments[0], Files.readString(Path.of(arguments[1])))) {
            String port = sidecar.awaitPort();
            if (port != null) {
                status = transfer(command, port);
            }
            ended = sidecar.end();
        }
        System.exit(status != 0 ? status : ended);
    }

    /** Runs the transfer; an application would open its JDBC connection to 127.0.0.1:port here. */
    private static int transfer(List<String> command, String port) throws IOException, InterruptedException {
        List<String> words = new ArrayList<>();
        command.forEach(word -> words.add(word.replace("{port}", port)));
        ProcessBuilder builder = new ProcessBuilder(words);
        builder.environment().put("SSM_SIDECAR_PORT", port);
        return builder.inheritIO().redirectInput(ProcessBuilder.Redirect.from(new java.io.File("/dev/null")))
                .start().waitFor();
    }

    /** A sidecar, whose open stdin is the job's lease. The JDK passes no pipe's end to other children. */
    private static final class Sidecar implements AutoCloseable {
        private final Process process;
        private final BufferedReader lines;

        Sidecar(String program, String document) throws IOException {
            process = new ProcessBuilder(program).redirectError(ProcessBuilder.Redirect.DISCARD).start();
            lines = process.inputReader(StandardCharsets.UTF_8);
            // Flushed and not closed: the open pipe is the lease.
            process.getOutputStream().write(document.getBytes(StandardCharsets.UTF_8));
            process.getOutputStream().flush();
        }

        /** The port of `ready`, or null when there is no tunnel; the reason is then on stderr. */
        String awaitPort() throws IOException, InterruptedException {
            Thread watchdog = new Thread(this::killLater);
            watchdog.setDaemon(true);
            watchdog.start();
            try {
                for (String line = lines.readLine(); line != null; line = lines.readLine()) {
                    String[] words = line.split(" ", 3);
                    if (words[0].equals("ready")) {
                        return words[1];
                    }
                    if (words[0].equals("failed")) {
                        System.err.println("no tunnel: " + line.substring("failed ".length()));
                        return null;
                    }
                    // Lines with other words are ignored, as the contract requires.
                }
                return null;
            } finally {
                watchdog.interrupt();
            }
        }

        /** Ends the lease: the tunnel closes, and its session is terminated. Returns the exit status. */
        int end() throws IOException, InterruptedException {
            process.getOutputStream().close();
            if (!process.waitFor(STOP_LIMIT_S, TimeUnit.SECONDS)) {
                throw new IOException("the sidecar did not end within " + STOP_LIMIT_S + " s");
            }
            return process.exitValue();
        }

        /** Stops the process on every path, also after an exception in the transfer. */
        @Override
        public void close() {
            process.destroy();
        }

        private void killLater() {
            try {
                TimeUnit.SECONDS.sleep(READY_LIMIT_S);
                process.destroyForcibly();
            } catch (InterruptedException ready) {
                // Interrupted in time, by `ready`, `failed` or the end of stdout.
            }
        }
    }
}
