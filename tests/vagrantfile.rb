# Renders the Vagrantfile as Vagrant would, for one provider and one kind of processor, without Vagrant or the provider: prints what is set, as JSON.
# Arguments: the Vagrantfile, the provider, the processor.
require "json"
require "rbconfig"

file, PROVIDER, processor = ARGV
RbConfig::CONFIG["host_cpu"] = processor

# Takes every assignment and call, and what it answers takes them too.
class Recorder
  attr_reader :seen

  def initialize(path = "", seen = [])
    @path, @seen = path, seen
  end

  def method_missing(name, *arguments, **options)
    return provider(*arguments) { |*given| yield(*given) } if name == :provider
    path = @path.empty? ? name.to_s : "#{@path}.#{name}"
    @seen << [path, *arguments, options] unless arguments.empty? && options.empty?
    Recorder.new(path, @seen)
  end

  def respond_to_missing?(*) = true

  private

  def provider(name)
    yield Recorder.new("machine", @seen), Recorder.new("", @seen) if name == PROVIDER
  end
end

module Vagrant
  def self.require_version(*) = nil

  def self.configure(_version)
    config = Recorder.new
    yield config
    puts JSON.generate(config.seen)
  end
end

load file
